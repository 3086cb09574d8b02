// Engines as programs use them: several threads in one engine, several engines in one process, paths that are switched,
// what cannot be loaded.
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
  for (const PlanFile& plan :
       {convolutions(), gated_convolutions(), float_gates(), tiled_convolutions(), everything_else()}) {
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
  for (const PlanFile& plan : {float_gates(), tiled_convolutions(), everything_else()}) {
    const PlanOnDisk file(plan);
    const Engine engine(file.path(), 2);
    const Floats input = images_for(engine, 40), expected = run(engine, input, 0, 40);
    for (std::int64_t images : {1, 33, 2, 40, 3, 1, 32}) {
      const Floats output = run(engine, input, 0, images);
      CHECK(std::equal(output.begin(), output.end(), expected.begin()));
    }
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

// The open decisions of each layer, and the output, of one image alone.
struct Run {
  std::vector<std::int64_t> open;
  Floats output;
};

Run run_alone(Engine& engine, const Floats& input, std::int64_t image) {
  engine.reset_stats();
  Run run{{}, headgate::run(engine, input, image, 1)};
  for (const LayerStats& layer : engine.stats()) run.open.push_back(layer.open);
  return run;
}

std::vector<std::string> gated_layers(const Engine& engine) {
  std::vector<std::string> names;
  for (const LayerStats& layer : engine.stats()) {
    if (layer.path) names.push_back(layer.name);
  }
  return names;
}

TEST(paths_differ_by_rounding_alone) {
  constexpr int kRuns = 40;
  for (const PlanFile& plan : {gated_convolutions(), float_gates(), tiled_convolutions()}) {
    const PlanOnDisk file(plan);
    for (Isa isa : isas()) {
      set_isa(name(isa));
      Engine engine(file.path(), 2), masked(file.path(), 3);
      for (const std::string& layer : gated_layers(masked)) masked.set_path(layer, Path::masked);
      const Floats input = images_for(engine, kRuns);
      int agreed = 0;
      std::int64_t open = 0, decisions = 0;
      for (int image = 0; image < kRuns; ++image) {
        if (image == kRuns / 2) engine.shift_thresholds(-1.0F), masked.shift_thresholds(-1.0F);
        const Run by_sparse = run_alone(engine, input, image), by_masked = run_alone(masked, input, image);
        for (const LayerStats& layer : engine.stats()) open += layer.open, decisions += layer.decisions;
        if (by_sparse.open != by_masked.open) continue;  // rounding in one layer decides in the next
        ++agreed;
        float largest = 1, error = 0;
        for (std::size_t i = 0; i < by_sparse.output.size(); ++i) {
          largest = std::max(largest, std::abs(by_sparse.output[i]));
          error = std::max(error, std::abs(by_sparse.output[i] - by_masked.output[i]));
        }
        CHECK(error <= 1e-5F * largest);
      }
      CHECK(agreed >= kRuns * 9 / 10);
      CHECK(0 < open && open < decisions);
    }
  }
  set_isa("");
}

TEST(paths_and_their_names) {
  const PlanOnDisk file(gated_convolutions());
  Engine engine(file.path());
  const auto path_of = [&](std::size_t layer) { return engine.stats()[layer].path; };
  for (std::size_t layer : {0, 1, 2}) CHECK(path_of(layer) == Path::sparse);
  engine.set_path("channels", Path::masked);
  engine.set_path("channels", Path::masked);
  CHECK(path_of(1) == Path::sparse && path_of(2) == Path::masked);
  engine.set_path("channels", Path::sparse);
  CHECK(path_of(2) == Path::sparse);
  for (const char* other : {"nowhere", ""}) {
    CHECK_THROWS(engine.set_path(other, Path::masked), InputError,
                 std::string("name must be that of a gated convolution, got ") + other);
  }
  const PlanOnDisk dense(convolutions());
  CHECK_THROWS(Engine(dense.path()).set_path("stem", Path::sparse), InputError,
               "name must be that of a gated convolution, got stem");
}

TEST(tuned_paths) {
  const PlanOnDisk file(float_gates());
  Engine engine(file.path(), 2);
  const Floats input = images_for(engine, 3);
  const Floats expected = run(engine, input, 0, 3);
  engine.set_path("groups", Path::masked);
  const std::vector<LayerStats> before = engine.stats();
  const std::vector<PathChoice> choices = engine.tune(input.data(), 3, 2);
  CHECK_EQ(choices.size(), 3U);
  for (std::size_t i = 0; i < choices.size(); ++i) {
    CHECK_EQ(choices[i].name, before[i].name);
    CHECK(choices[i].density > 0 && choices[i].density < 1);
    CHECK(choices[i].path == (choices[i].masked_ms < 0.97 * choices[i].sparse_ms ? Path::masked : Path::sparse));
    const LayerStats after = engine.stats()[i];
    CHECK(after.path == choices[i].path && after.images == before[i].images && after.open == before[i].open);
  }
  CHECK_EQ(choices[0].density, static_cast<double>(before[0].open) / static_cast<double>(before[0].decisions));
  CHECK(before[1].path == Path::masked);
  for (const PathChoice& choice : choices) engine.set_path(choice.name, Path::sparse);
  CHECK(same_bits(run(engine, input, 0, 3), expected));
  CHECK_THROWS(engine.tune(input.data(), 0, 1), InputError, "images must be ≥ 1, got 0");
  CHECK_THROWS(engine.tune(input.data(), 1, 0), InputError, "repeats must be ≥ 1, got 0");
  const PlanOnDisk dense(convolutions());
  CHECK(Engine(dense.path()).tune(input.data(), 1, 1).empty());
}

// A run takes each layer's path once: its result is that of one of the choices of paths, bit for bit.
TEST(paths_are_switched_while_others_run) {
  constexpr int kThreads = 3, kRounds = 20;
  const PlanOnDisk file(float_gates());
  for (Isa isa : isas()) {
    set_isa(name(isa));
    Engine engine(file.path(), 2);
    const std::vector<std::string> layers = gated_layers(engine);
    CHECK_EQ(layers.size(), 3U);
    const auto choose = [&](unsigned masked) {  // layers by bit
      for (std::size_t i = 0; i < layers.size(); ++i) {
        engine.set_path(layers[i], masked >> i & 1 ? Path::masked : Path::sparse);
      }
    };
    const unsigned choices = 1u << layers.size();
    const Floats input = images_for(engine, kThreads);
    std::vector<Floats> expected[kThreads];
    for (unsigned masked = 0; masked < choices; ++masked) {
      choose(masked);
      for (int image = 0; image < kThreads; ++image) expected[image].push_back(run(engine, input, image, 1));
    }
    CHECK(!same_bits(expected[0].front(), expected[0].back()));  // else switching would not be seen
    std::atomic<int> wrong{0}, running{kThreads};
    std::vector<std::thread> threads;
    for (int image = 0; image < kThreads; ++image) {
      threads.emplace_back([&, image] {
        for (int round = 0; round < kRounds; ++round) {
          const Floats output = run(engine, input, image, 1);
          wrong += std::none_of(expected[image].begin(), expected[image].end(),
                                [&](const Floats& one) { return same_bits(output, one); });
        }
        --running;
      });
    }
    for (unsigned masked = 0; running > 0; ++masked) choose(masked % choices);
    for (std::thread& thread : threads) thread.join();
    CHECK_EQ(wrong.load(), 0);
  }
  set_isa("");
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
