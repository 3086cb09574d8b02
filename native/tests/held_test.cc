// Which values are held rounded.
#include "engine/held.h"

#include <numeric>

#include "tests/check.h"
#include "tests/isas.h"

namespace headgate {
namespace {

constexpr int kChannels = 16;

// Of so many values of one size, the first of which is the input, and the last the output.
Plan plan_of(int values) {
  Plan plan{};
  plan.values.assign(values, {kChannels, 4, 4});
  plan.input = 0, plan.output = values - 1;
  return plan;
}

enum class Numbers { floats, int8, bfloat16 };

// The convolution that makes `output`, dense; others change it.
Op& add_conv(Plan& plan, Numbers numbers, std::vector<int> inputs, int output) {
  Op op{};
  op.kind = OpKind::conv;
  op.inputs = std::move(inputs);
  op.output = output;
  op.groups = {1, kChannels, std::vector<std::int32_t>(kChannels)};
  std::iota(op.groups.channels.begin(), op.groups.channels.end(), 0);
  if (numbers == Numbers::int8) op.int8 = InputRange{0.5f, 3};
  op.bfloat16 = numbers == Numbers::bfloat16;
  plan.ops.push_back(op);
  return plan.ops.back();
}

// How value 1 of a plan is held.
template <class F>
void each_way(const Plan& plan, F check) {
  for (Isa isa : isas()) {
    const KernelSet kernels = kernel_set(isa);
    const std::vector<Held> held = held_values(plan, kernels);
    CHECK(held.front().floats && !held.front().rounded);
    CHECK(held.back().floats && !held.back().rounded);
    check(held[1], kernels);
  }
}

// Made by one narrow convolution, read by another.
Plan chain(Numbers maker = Numbers::int8, Numbers reader = Numbers::int8) {
  Plan plan = plan_of(3);
  add_conv(plan, maker, {0}, 1);
  add_conv(plan, reader, {1}, 2);
  return plan;
}

void only_in_floats(const Plan& plan) {
  each_way(plan, [](const Held& held, const KernelSet&) { CHECK(held.floats && !held.rounded); });
}

void only_rounded(const Plan& plan) {
  each_way(plan, [](const Held& held, const KernelSet&) { CHECK(!held.floats && held.rounded); });
}

// In bytes beside floats, where the instruction set holds bytes.
void beside(const Plan& plan) {
  each_way(plan, [](const Held& held, const KernelSet& kernels) {
    CHECK(held.floats);
    CHECK_EQ(held.rounded.has_value(), kernels.int8.format.element == NarrowElement::byte);
  });
}

TEST(what_one_makes_and_another_reads) {
  only_rounded(chain());
  only_rounded(chain(Numbers::bfloat16, Numbers::bfloat16));
  each_way(chain(), [](const Held& held, const KernelSet& kernels) {
    CHECK_EQ(held.rounded->rounding.inverse_scale, 2.0f);
    CHECK_EQ(held.rounded->rounding.zero, 3);
    CHECK_EQ(held.rounded->element_bytes, kernels.int8.format.element_bytes());
  });
}

TEST(others_make_or_read_floats) {
  for (Numbers numbers : {Numbers::int8, Numbers::bfloat16}) {
    only_in_floats(chain(Numbers::floats, numbers));
    only_in_floats(chain(numbers, Numbers::floats));
  }
  only_in_floats(chain(Numbers::int8, Numbers::bfloat16));
  only_in_floats(chain(Numbers::bfloat16, Numbers::int8));
}

TEST(an_activation_of_its_own_pass) {
  Plan plan = chain();
  plan.ops[0].activation = Activation::relu6;
  only_rounded(plan);
  plan.ops[0].activation = Activation::silu;
  only_in_floats(plan);
}

TEST(channels_in_another_order) {
  Plan plan = chain();
  std::swap(plan.ops[1].groups.channels.front(), plan.ops[1].groups.channels.back());
  only_in_floats(plan);
}

TEST(readers_that_agree_or_not) {
  Plan plan = plan_of(4);
  add_conv(plan, Numbers::int8, {0}, 1);
  add_conv(plan, Numbers::int8, {1}, 2);
  add_conv(plan, Numbers::int8, {1}, 3);
  only_rounded(plan);
  plan.ops[2].int8->zero = 4;
  only_in_floats(plan);
  plan.ops[2].int8 = InputRange{0.25f, 3};
  only_in_floats(plan);
}

TEST(sums_that_read_floats) {
  Plan plan = chain();
  plan.ops[1].inputs = {1, 1};
  beside(plan);
  plan = chain(Numbers::bfloat16, Numbers::bfloat16);
  plan.ops[1].inputs = {1, 1};
  only_in_floats(plan);
}

TEST(gates_make_floats) {
  Plan plan = chain();
  plan.ops[0].kind = OpKind::gated_conv;
  plan.ops[0].gating = Gating{};
  plan.ops[0].gating->base = plan.ops[0].groups;
  beside(plan);
}

TEST(the_output) {
  Plan plan = chain();
  plan.output = 1;
  each_way(plan, [](const Held& held, const KernelSet&) { CHECK(held.floats); });
}

}  // namespace
}  // namespace headgate
