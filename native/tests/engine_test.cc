// Engines as programs use them: several threads in one engine, several engines in one process, what cannot be loaded.
#include "headgate/engine.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>

#include "tests/isas.h"
#include "tests/plan_on_disk.h"

namespace headgate {
namespace {

using Floats = std::vector<float>;

std::size_t elements(const MapShape& shape) {
  return static_cast<std::size_t>(shape.channels) * static_cast<std::size_t>(shape.height * shape.width);
}

Floats images_for(const Engine& engine, std::int64_t images) {
  Floats input(static_cast<std::size_t>(images) * elements(engine.input_shape()));
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = std::sin(static_cast<float>(i));
  return input;
}

Floats run(const Engine& engine, const Floats& input, std::int64_t first, std::int64_t images) {
  Floats output(static_cast<std::size_t>(images) * elements(engine.output_shape()));
  engine.run(input.data() + static_cast<std::size_t>(first) * elements(engine.input_shape()), images, output.data());
  return output;
}

bool same_bits(const Floats& a, const Floats& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

TEST(one_engine_in_several_threads) {
  for (const PlanFile& plan : {convolutions(), gated_convolutions(), everything_else()}) {
    for (Isa isa : isas()) {
      set_isa(name(isa));
      const PlanOnDisk file(plan);
      Engine engine(file.path(), 2);
      constexpr int kThreads = 4, kRounds = 10;
      const Floats input = images_for(engine, kThreads);
      std::vector<Floats> expected;
      for (int image = 0; image < kThreads; ++image) expected.push_back(run(engine, input, image, 1));
      engine.reset_stats();
      std::atomic<int> wrong{0};
      std::vector<std::thread> threads;
      for (int image = 0; image < kThreads; ++image) {
        threads.emplace_back([&, image] {
          for (int round = 0; round < kRounds; ++round) {
            if (!same_bits(run(engine, input, image, 1), expected[static_cast<std::size_t>(image)])) ++wrong;
            static_cast<void>(engine.stats());
            engine.shift_thresholds(0.0f);
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      CHECK_EQ(wrong.load(), 0);
      CHECK_EQ(engine.stats()[0].images, kThreads * kRounds);
    }
  }
  set_isa("");
}

TEST(several_engines_in_one_process) {
  const PlanOnDisk file(gated_convolutions());
  std::atomic<int> wrong{0};
  const Engine first(file.path(), 1);
  const Floats input = images_for(first, 5), expected = run(first, input, 0, 5);
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 5; ++round) {
        const Engine engine(file.path(), 1 + i % 3);
        if (!same_bits(run(engine, input, 0, 5), expected)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
}

TEST(batches_in_any_order) {
  const PlanOnDisk file(everything_else());
  const Engine engine(file.path(), 2);
  const Floats input = images_for(engine, 40), expected = run(engine, input, 0, 40);
  for (std::int64_t images : {1, 33, 2, 40, 3, 1, 32}) {
    const Floats output = run(engine, input, 0, images);
    CHECK(std::equal(output.begin(), output.end(), expected.begin()));
  }
}

// The gated plan computes an operator in 8-bit integers, which have no NaN.
TEST(images_with_nan_have_outputs_of_nan) {
  const PlanOnDisk file(gated_convolutions());
  const Engine engine(file.path(), 2);
  Floats input = images_for(engine, 40);
  const Floats expected = run(engine, input, 0, 40);
  const std::size_t in = elements(engine.input_shape()), out = elements(engine.output_shape());
  input[35 * in + in - 1] = std::numeric_limits<float>::quiet_NaN();
  const Floats output = run(engine, input, 0, 40);
  for (std::size_t image = 0; image < 40; ++image) {
    const float *now = &output[image * out], *before = &expected[image * out];
    if (image == 35) {
      CHECK(std::all_of(now, now + out, [](float v) { return std::isnan(v); }));
    } else {
      CHECK(std::memcmp(now, before, out * sizeof(float)) == 0);
    }
  }
}

TEST(moved_engines) {
  const PlanOnDisk file(convolutions());
  Engine engine(file.path(), 1);
  const Floats input = images_for(engine, 1), expected = run(engine, input, 0, 1);
  Engine other = std::move(engine);
  CHECK(same_bits(run(other, input, 0, 1), expected));
}

TEST(what_is_refused) {
  const PlanOnDisk file(convolutions());
  CHECK_THROWS(Engine(file.path(), 0), InputError, "threads must be in [1, 256], got 0");
  CHECK_THROWS(Engine("/nowhere/x.hgplan"), PlanError, "/nowhere/x.hgplan: cannot open: No such file or directory");
  Engine engine(file.path());
  CHECK_THROWS(engine.run(nullptr, -1, nullptr), InputError, "images must be ≥ 0, got -1");
  CHECK_THROWS(engine.shift_thresholds(std::numeric_limits<float>::infinity()), InputError,
               "offset must be finite, got inf");
}

// A small file whose maps would take more than 2^35 numbers at once.
TEST(absurd_maps) {
  constexpr int kCopies = 9;
  PlanFile absurd{R"({"version": 1, "producer": "test", "input": 0, "output": 17, "values": [)"};
  for (int i = 0; i < 2 * kCopies; ++i) absurd.plan += std::string(i == 0 ? "" : ", ") + R"({"shape": [1, 16384, 16384]})";
  absurd.plan += R"(], "ops": [)";
  for (int i = 1; i <= kCopies; ++i) {
    absurd.plan += R"({"kind": "activation", "name": "copy)" + std::to_string(i) + R"(", "inputs": [0], "output": )" + std::to_string(i) +
                   R"(, "activation": "relu"}, )";
  }
  for (int i = 1; i < kCopies; ++i) {
    absurd.plan += std::string(i == 1 ? "" : ", ") + R"({"kind": "add", "name": "sum)" + std::to_string(i) + R"(", "inputs": [)" +
                   std::to_string(i == 1 ? 1 : kCopies + i - 1) + ", " + std::to_string(i + 1) + R"(], "output": )" +
                   std::to_string(kCopies + i) + R"(, "activation": "none"})";
  }
  absurd.plan += "]}";
  const PlanOnDisk file(absurd);
  CHECK_THROWS(Engine(file.path()), PlanError,
               file.path() + ": the values that live together need more than 2^35 numbers");
}

}  // namespace
}  // namespace headgate
