// The C interface: the same results as the C++ one, and every failure as a status and a text.
#include <cstring>
#include <thread>
#include <vector>

#include "headgate/engine.h"
#include "headgate/engine_c.h"
#include "headgate/isa.h"
#include "tests/plan_on_disk.h"

namespace headgate {
namespace {

#define CHECK_FAILS(call, status, message) \
  CHECK_EQ(call, status);                  \
  CHECK_EQ(std::string(headgate_last_error()), message)

TEST(results) {
  const PlanOnDisk file(gated_convolutions());
  headgate_engine* engine = nullptr;
  CHECK_EQ(headgate_engine_open(file.path().c_str(), 2, &engine), HEADGATE_OK);
  int in[3], out[3];
  CHECK_EQ(headgate_engine_shapes(engine, in, out), HEADGATE_OK);
  CHECK(in[0] == 4 && in[1] == 5 && in[2] == 5 && out[0] == 6 && out[1] == 3 && out[2] == 3);
  const std::vector<float> input(2 * 4 * 5 * 5, 0.25f);
  std::vector<float> output(2 * 6 * 3 * 3), expected(output.size());
  Engine same(file.path(), 1);
  same.shift_thresholds(0.5f);
  same.run(input.data(), 2, expected.data());
  CHECK_EQ(headgate_engine_shift_thresholds(engine, 0.5f), HEADGATE_OK);
  CHECK_EQ(headgate_engine_run(engine, input.data(), 2, output.data()), HEADGATE_OK);
  CHECK(std::memcmp(output.data(), expected.data(), output.size() * sizeof(float)) == 0);
  CHECK_EQ(headgate_engine_run(engine, nullptr, 0, nullptr), HEADGATE_OK);

  CHECK_FAILS(headgate_engine_run(engine, input.data(), -1, output.data()), HEADGATE_INPUT_ERROR,
              "images must be ≥ 0, got -1");
  CHECK_FAILS(headgate_engine_run(engine, nullptr, 1, output.data()), HEADGATE_INPUT_ERROR, "input must not be null");
  CHECK_FAILS(headgate_engine_run(engine, input.data(), 1, nullptr), HEADGATE_INPUT_ERROR, "output must not be null");
  CHECK_FAILS(headgate_engine_run(nullptr, input.data(), 1, output.data()), HEADGATE_INPUT_ERROR,
              "engine must not be null");
  CHECK_FAILS(headgate_engine_shapes(engine, nullptr, out), HEADGATE_INPUT_ERROR, "input must not be null");
  CHECK_EQ(headgate_engine_shift_thresholds(engine, 3e38f), HEADGATE_OK);
  CHECK_EQ(headgate_engine_shift_thresholds(engine, 3e38f), HEADGATE_INPUT_ERROR);
  headgate_engine_close(engine);
  headgate_engine_close(nullptr);
}

TEST(paths_and_statistics) {
  const PlanOnDisk file(float_gates());
  headgate_engine* engine = nullptr;
  CHECK_EQ(headgate_engine_open(file.path().c_str(), 1, &engine), HEADGATE_OK);
  std::int64_t count = 0;
  CHECK_EQ(headgate_engine_stats(engine, nullptr, 0, &count), HEADGATE_OK);
  CHECK_EQ(count, 3);
  CHECK_EQ(headgate_engine_set_path(engine, "groups", HEADGATE_MASKED), HEADGATE_OK);
  const std::vector<float> input(4 * 5 * 9 * 8, 0.25f);
  std::vector<float> output(4 * 18 * 9 * 8);
  CHECK_EQ(headgate_engine_run(engine, input.data(), 4, output.data()), HEADGATE_OK);

  Engine same(file.path(), 1);
  same.set_path("groups", Path::masked);
  same.run(input.data(), 4, output.data());
  const std::vector<LayerStats> expected = same.stats();
  std::vector<headgate_layer_stats> layers(4, {nullptr, nullptr, 0, 0, 0, 0, 0, 0, HEADGATE_NOT_GATED});
  CHECK_EQ(headgate_engine_stats(engine, layers.data(), 2, &count), HEADGATE_OK);
  CHECK(layers[2].name == nullptr);
  CHECK_EQ(headgate_engine_stats(engine, layers.data(), 4, &count), HEADGATE_OK);
  CHECK(count == 3 && layers[3].name == nullptr);
  for (std::size_t i = 0; i < 3; ++i) {
    CHECK(layers[i].name == expected[i].name && layers[i].kind == expected[i].kind);
    CHECK(layers[i].images == 4 && layers[i].milliseconds > 0);
    CHECK(layers[i].dense_macs == expected[i].dense_macs && layers[i].executed_macs == expected[i].executed_macs);
    CHECK(layers[i].decisions == expected[i].decisions && layers[i].open == expected[i].open);
    CHECK_EQ(layers[i].path, i == 1 ? HEADGATE_MASKED : HEADGATE_SPARSE);
  }

  CHECK_EQ(headgate_engine_tune(engine, input.data(), 4, 1), HEADGATE_OK);
  CHECK_EQ(headgate_engine_reset_stats(engine), HEADGATE_OK);
  CHECK_EQ(headgate_engine_stats(engine, layers.data(), 4, &count), HEADGATE_OK);
  CHECK(layers[0].images == 0 && layers[0].executed_macs == 0);

  CHECK_FAILS(headgate_engine_set_path(engine, "nowhere", HEADGATE_MASKED), HEADGATE_INPUT_ERROR,
              "name must be that of a gated convolution, got nowhere");
  CHECK_FAILS(headgate_engine_set_path(engine, nullptr, HEADGATE_MASKED), HEADGATE_INPUT_ERROR, "name must not be null");
  CHECK_FAILS(headgate_engine_set_path(engine, "groups", HEADGATE_NOT_GATED), HEADGATE_INPUT_ERROR,
              "path must be HEADGATE_SPARSE or HEADGATE_MASKED, got -1");
  CHECK_FAILS(headgate_engine_tune(engine, input.data(), 0, 1), HEADGATE_INPUT_ERROR, "images must be ≥ 1, got 0");
  CHECK_FAILS(headgate_engine_tune(engine, nullptr, 1, 1), HEADGATE_INPUT_ERROR, "input must not be null");
  CHECK_FAILS(headgate_engine_stats(engine, nullptr, 0, nullptr), HEADGATE_INPUT_ERROR, "count must not be null");
  headgate_engine_close(engine);

  const PlanOnDisk dense(convolutions());
  CHECK_EQ(headgate_engine_open(dense.path().c_str(), 1, &engine), HEADGATE_OK);
  CHECK_EQ(headgate_engine_stats(engine, layers.data(), 1, &count), HEADGATE_OK);
  CHECK(layers[0].path == HEADGATE_NOT_GATED && layers[0].decisions == 0);
  headgate_engine_close(engine);
}

TEST(plans_that_cannot_be_opened) {
  headgate_engine* engine = reinterpret_cast<headgate_engine*>(&engine);
  CHECK_FAILS(headgate_engine_open("/nowhere", 1, &engine), HEADGATE_PLAN_ERROR,
              "/nowhere: cannot open: No such file or directory");
  CHECK(engine == nullptr);
  CHECK_FAILS(headgate_engine_open("/nowhere", 257, &engine), HEADGATE_INPUT_ERROR,
              "threads must be in [1, 256], got 257");
  CHECK_FAILS(headgate_engine_open(nullptr, 1, &engine), HEADGATE_INPUT_ERROR, "path must not be null");
  CHECK_FAILS(headgate_engine_open("/nowhere", 1, nullptr), HEADGATE_INPUT_ERROR, "engine must not be null");
}

TEST(each_thread_has_its_own_error) {
  headgate_engine* engine = nullptr;
  CHECK_EQ(headgate_engine_open("/nowhere", 1, &engine), HEADGATE_PLAN_ERROR);
  std::thread([] {
    CHECK_EQ(std::string(headgate_last_error()), "");
    headgate_engine* other = nullptr;
    CHECK_EQ(headgate_engine_open("/nowhere", 0, &other), HEADGATE_INPUT_ERROR);
  }).join();
  CHECK_EQ(std::string(headgate_last_error()), "/nowhere: cannot open: No such file or directory");
}

}  // namespace
}  // namespace headgate
