// Where values live, and how much memory a plan may ask for.
#include "engine/layout.h"

#include <algorithm>
#include <random>

#include "engine/memory.h"
#include "engine/safetensors.h"
#include "tests/check.h"
#include "tests/plan_file.h"

namespace headgate {
namespace {

// A chain of activations of `ops` values of several sizes, each added to one that was made up to `reach` before it.
Plan chain(int ops, int reach) {
  std::mt19937 random(7);
  Plan plan{};
  plan.values.assign(static_cast<std::size_t>(ops) + 1, {16, 4, 4});
  for (int i = 0; i < ops; ++i) {
    plan.values[static_cast<std::size_t>(i) + 1].height = 1 + static_cast<int>(random() % 8);
    Op op{};
    op.kind = OpKind::add;
    op.inputs = {i, std::max(0, i - static_cast<int>(random() % static_cast<unsigned>(reach)))};
    op.output = i + 1;
    plan.ops.push_back(op);
  }
  plan.input = 0, plan.output = ops;
  return plan;
}

Layout layout_of(const Plan& plan) { return {plan, std::vector<Held>(plan.values.size())}; }

// Fills the arena as a run would: every input must still hold what its writer put there.
bool keeps_values(const Plan& plan, const Layout& layout) {
  std::vector<float> arena(static_cast<std::size_t>(layout.arena_size(1)), -1.0f);
  // Of the value in floats, and rounded to numbers as large.
  const auto whole = [&](int value) {
    std::vector<std::pair<float*, float*>> parts;
    const Map map = layout.map(value, arena.data(), 1);
    if (map.data != nullptr) parts.emplace_back(map.data, map.data + map.image_stride);
    if (layout.held(value).rounded) {
      const NarrowMap rounded = layout.rounded(value, arena.data(), 1);
      float* const begin = reinterpret_cast<float*>(rounded.data);
      parts.emplace_back(begin, begin + rounded.image_stride + kNarrowSlack / 4);
    }
    return parts;
  };
  const auto write = [&](int value) {
    for (const auto& [begin, end] : whole(value)) std::fill(begin, end, static_cast<float>(value));
  };
  const auto holds = [&](int value) {
    const auto parts = whole(value);
    return std::all_of(parts.begin(), parts.end(), [&](const auto& part) {
      return std::all_of(part.first, part.second, [&](float x) { return x == static_cast<float>(value); });
    });
  };
  write(plan.input);
  for (const Op& op : plan.ops) {
    write(op.output);
    if (!std::all_of(op.inputs.begin(), op.inputs.end(), holds)) return false;
  }
  return holds(plan.output);
}

// The floats of all values that live at once.
std::int64_t most_alive(const Plan& plan, const Layout& layout) {
  std::vector<std::int64_t> alive(plan.ops.size());
  for (int value = 0; value < static_cast<int>(plan.values.size()); ++value) {
    int first = std::max(0, value - 1), last = first;
    for (int i = 0; i < static_cast<int>(plan.ops.size()); ++i) {
      if (std::count(plan.ops[i].inputs.begin(), plan.ops[i].inputs.end(), value) > 0) last = i;
    }
    for (int i = first; i <= last; ++i) alive[i] += layout.map(value, nullptr, 1).image_stride;
  }
  return *std::max_element(alive.begin(), alive.end());
}

TEST(few_values) {
  const Plan plan = chain(300, 20);
  const Layout layout = layout_of(plan);
  CHECK(keeps_values(plan, layout));
  CHECK(layout.arena_size(1) <= most_alive(plan, layout) * 5 / 4);
}

TEST(rounded_values) {
  for (int ops : {300, 6'000}) {
    const Plan plan = chain(ops, 20);
    std::vector<Held> held(plan.values.size());
    for (std::size_t value = 1; value + 1 < held.size(); ++value) {
      if (value % 3 != 0) held[value].rounded = {{1.0f, 0}, sizeof(float)};
      held[value].floats = value % 3 != 1;
    }
    const Layout layout(plan, held);
    CHECK(layout.map(1, nullptr, 1).data == nullptr);
    CHECK(keeps_values(plan, layout));
  }
}

TEST(many_values) {
  const Plan plan = chain(6'000, 20);
  const Layout layout = layout_of(plan);
  CHECK(keeps_values(plan, layout));
  CHECK(layout.arena_size(1) <= most_alive(plan, layout) * 3 / 2);
}

// As many as a plan may have operators: as little space as for fewer, and without the square of their number in time.
TEST(very_many_values) {
  CHECK(layout_of(chain(100'000, 20)).arena_size(1) <= 3 * layout_of(chain(6'000, 20)).arena_size(1));
  CHECK(layout_of(chain(100'000, 100'000)).arena_size(1) > layout_of(chain(100'000, 20)).arena_size(1));
}

TEST(memory) {
  const Plan plan = parse_plan(MappedFile::copy_of(gated_convolutions().bytes()), "m");
  // Outputs padded to 16: the base path's weights and lists, 2 and 3 inputs of 9 taps and 2 of 1, and 16 inputs of all;
  // in 8 bits, which one of 9 taps is, a line for each output and tap.
  CHECK_EQ(packed_bytes(plan), 4.0 * 16 * (2 * (2 * 9 + 1 * 1 + 3 * 9) + 16 * (9 + 1 + 9) + 16 * 9));
  refuse_beyond(1e9, 0.6e9, 0.4e9);
  CHECK_THROWS(refuse_beyond(1e9, 0.7e9, 0.4e9), PlanError,
               "needs about 1100 MB of memory for one image (weights 700 MB, maps and buffers 400 MB), and this "
               "process may use 1000 MB");
  CHECK(memory_limit() > 1e8);
}

}  // namespace
}  // namespace headgate
