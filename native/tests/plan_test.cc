#include "engine/plan.h"

#include <unistd.h>

#include <cstring>
#include <fstream>
#include <limits>

#include "engine/json.h"
#include "engine/safetensors.h"
#include "tests/check.h"
#include "tests/plan_on_disk.h"
#include "tests/wrong_plans.h"

namespace headgate {
namespace {

TEST(plan_convolutions) {
  const Plan plan = parse(convolutions().bytes());
  CHECK_EQ(plan.producer, "test");
  CHECK_EQ(plan.output, 4);
  CHECK_EQ(plan.ops.size(), 4U);
  CHECK((plan.values[0] == Shape{4, 8, 9}));
  const Op& stem = plan.ops[0];
  CHECK(stem.kind == OpKind::conv && stem.activation == Activation::relu && stem.name == "stem");
  CHECK((stem.window.kernel == std::array{3, 3}) && (stem.window.dilation == std::array{2, 2}));
  CHECK((stem.weight.shape == std::vector<std::int64_t>{6, 4, 3, 3}));
  CHECK_EQ(stem.weight.data[0], 0.25F);
  CHECK_EQ(stem.weight.data[6 * 4 * 9 - 1], 0.5F);
  CHECK((plan.ops[1].groups.channels == std::vector{0, 1, 2, 3, 4, 5}) && plan.ops[1].groups.blocks == 2);
  CHECK((plan.ops[2].inputs == std::vector{2, 2}));
  CHECK_EQ(plan.ops[2].bias.data, plan.ops[1].bias.data);
}

TEST(plan_gated_convolutions) {
  const Plan plan = parse(gated_convolutions().bytes());
  const Gating &pixels = *plan.ops[0].gating, &groups = *plan.ops[1].gating, &channels = *plan.ops[2].gating;
  CHECK(pixels.granularity == Granularity::activation && !pixels.two_sided && pixels.group_scale.data == nullptr);
  CHECK((pixels.base.channels == std::vector{0, 2, 1, 3}) && pixels.base.blocks == 2 && pixels.base.per_block == 2);
  CHECK(groups.granularity == Granularity::group && groups.two_sided && groups.decisions == 3);
  CHECK_EQ(groups.center, 1.5F);
  CHECK_EQ(groups.channel_bound, 0.25F);
  CHECK(channels.granularity == Granularity::channel && channels.group_scale.data != nullptr);
  CHECK((plan.ops[2].window.stride == std::array{2, 2}));
}

TEST(plan_everything_else) {
  const Plan plan = parse(everything_else().bytes());
  CHECK(plan.ops[0].kind == OpKind::max_pool && !plan.ops[1].count_include_pad);
  CHECK(plan.ops[4].activation == Activation::silu && plan.ops[6].activation == Activation::sigmoid);
  CHECK_EQ(plan.ops[5].weight.data[0], 2.0F);
  CHECK((plan.ops[7].inputs == std::vector{7, 4, 2}));
}

TEST(wrong_description) {
  check_wrong(
      everything_else(),
      {{R"("version": 1)", R"("version": 2)",
        "a plan of version 2, and this engine reads version 1; export the model with the headgate that runs it"},
       {R"("version": 1)", R"("version": "1")", R"(version must be 1, got "1")"},
       {R"("version": 1, )", "", "version is missing; it must be 1"},
       {R"("producer": "test")", R"("producer": 7)", "producer must be a string, got 7"},
       {R"("input": 0)", R"("input": 9)", "input must be an integer in [0, 8], got 9"},
       {R"("output": 8)", R"("output": -1)", "output must be an integer in [0, 8], got -1"},
       {R"("output": 8)", R"("output": 0)",
        "output must be a value that an operator writes, not the plan's input, got 0"},
       {R"("output": 8)", R"("output": 8, "extra": [{}])",
        R"(unknown attribute "extra", got [{}]; accepted are version, producer, values, ops, input, output)"},
       {R"("ops": [)", R"("ops": 1, "z": [)", "ops must be a list, got 1"},
       {R"({"shape": [3, 9, 9]})", "7", "value 0: must be an object, got 7"},
       {"[3, 9, 9]", "[3, 9]", "value 0: shape must be three integers in [1, 1048576], got [3, 9]"},
       {"[3, 9, 9]", "[3, 0, 9]", "value 0: shape must be three integers in [1, 1048576], got [3, 0, 9]"},
       {"[3, 9, 9]", "[3, 9.0, 9]", "value 0: shape must be three integers in [1, 1048576], got [3, 9.0, 9]"},
       {"[3, 9, 9]", "[1024, 1024, 1024]",
        "value 0: shape must be of at most 268435456 elements, got [1024, 1024, 1024]"},
       {R"({"shape": [3, 9, 9]})", R"({"shape": [3, 9, 9], "dtype": 1})",
        R"(value 0: unknown attribute "dtype", got 1; accepted are shape)"},
       {R"("ops": [)", R"("ops": [[], )", "operator 0: must be an object, got []"},
       {"1, \"prod", "1, \"version\": 1, \"prod",
        R"(headgate.plan is not JSON: byte 1095: the object that ends here has the key "version" twice)"}});
}

// Where errors are, as messages say it.
const std::string kExcite = R"(operator 3 (mul "excite"): )";
const std::string kCat = R"(operator 7 (concat "cat"): )";
const std::string kSum = R"(operator 6 (add "sum"): )";
const std::string kDown = R"(operator 1 (conv "down"): )";
const std::string kStem = R"(operator 0 (conv "stem"): )";
const std::string kPoint = R"(operator 2 (conv "point"): )";
const std::string kGroups = R"(operator 1 (gated_conv "groups"): )";
const std::string kPixels = R"(operator 0 (gated_conv "pixels"): )";
const std::string kMax = R"(operator 0 (max_pool "max"): )";
const std::string kAvg = R"(operator 1 (avg_pool "avg"): )";
const std::string kSqueeze = R"(operator 2 (adaptive_avg_pool "squeeze"): )";

TEST(wrong_data_flow) {
  check_wrong(everything_else(),
              {{R"("name": "max", )", "", "operator 0: name is missing; it must be a string"},
               {R"("name": "excite")", R"("name": "max")", "two operators have the name max"},
               {R"("kind": "mul")", R"("kind": "div")",
                R"(operator 3 ("excite"): kind must be one of conv, gated_conv, max_pool, avg_pool, )"
                R"(adaptive_avg_pool, add, mul, concat, affine, activation, got "div")"},
               {"[2, 3]", "[2, 5]", kExcite + "inputs must be written before they are read, got value 5"},
               {"[2, 3]", "[2]", kExcite + "inputs must be two integers in [0, 8], got [2]"},
               {"[7, 4, 2]", "[]", kCat + "inputs must be a list of one or more integers in [0, 8], got []"},
               {R"("output": 7)", R"("output": 0)",
                kSum + "output must be a value that nothing has written, got value 0, the plan's input"},
               {R"("output": 7)", R"("output": 6)",
                kSum + "output must be a value that nothing has written, got value 6, written by operator 5"},
               {R"({"shape": [9, 3, 3]})", R"({"shape": [9, 3, 3]}, {"shape": [1, 1, 1]})",
                "value 9: no operator writes it"}});
}

TEST(wrong_convolutions) {
  check_wrong(
      convolutions(),
      {{R"("stride": [2, 2])", R"("stride": [0, 2])", kDown + "stride must be two integers in [1, 4096], got [0, 2]"},
       {R"("stride": [2, 2], )", "", kDown + "stride is missing; it must be two integers in [1, 4096]"},
       {R"("padding": [1, 1])", R"("padding": [2, 1])",
        kDown + "output must be of the size that kernel 3x3, stride 2x2, padding 2x1 and dilation 1x1 "
        "make of 8x9, 5x5, got 4x5"},
       {R"("dilation": [2, 2])", R"("dilation": [4096, 2])",
        kStem + "output must be of the size that kernel 3x3, stride 1x1, padding 2x2 and dilation "
        "4096x2 make of 8x9, 0x9, got 8x9"},
       {R"("groups": 2)", R"("groups": 4)",
        kDown + "groups must divide the 6 input channels and the 6 output channels, got 4"},
       {R"("groups": 2)", R"("groups": 9223372036854775808)",
        kDown + "groups must be an integer in [1, 1048576], got 9223372036854775808.0"},
       {R"("groups": 2)", R"("groups": 1)",
        kDown + R"(weight: tensor "down.weight" must have shape [6, 6, any, any], got [6, 3, 3, 3])"},
       {R"("bias": "down.bias")", R"("bias": "nothing")",
        kDown + R"(bias must be the name of a tensor in the file, got "nothing")"},
       {R"("activation": "hardswish")", R"("activation": "Relu")",
        kDown + "activation must be one of none, relu, relu6, hardswish, hardsigmoid, silu, sigmoid, "
        R"(tanh, got "Relu")"},
       {"[2, 2], \"output\": 3", "[2, 1], \"output\": 3",
        kPoint + "input 1 must have the output's shape, [6, 4, 5], got [6, 8, 9]"},
       {R"("groups": 2)", R"("groups": 2, "gruops": 2)",
        kDown + R"(unknown attribute "gruops", got 2; accepted are name, kind, inputs, output, groups, )"
        "weight, bias, stride, padding, dilation, activation, precision"}});

  PlanFile file = convolutions();
  file.entries = replaced(file.entries, R"("stem.bias":{"dtype":"F32")", R"("stem.bias":{"dtype":"I32")");
  CHECK_THROWS(parse(file.bytes()), PlanError, "m: " + kStem + R"(bias: tensor "stem.bias" must be F32, got "I32")");
  file.entries = replaced(file.entries, R"("stem.bias":{"dtype":"I32")", R"("stem.bias":{"dtype":"F16")");
  CHECK_THROWS(parse(file.bytes()), PlanError, "m: " + kStem + R"(bias: tensor "stem.bias" must be F32, got "F16")");
}

TEST(not_a_plan) {
  PlanFile file{"[]"};
  CHECK_THROWS(parse(file.bytes()), PlanError, "m: must be an object, got []");
  CHECK_THROWS(parse(replaced(file.bytes(), "headgate.plan", "headgate_plan")), PlanError,
               "m: a safetensors file, but not a plan: its metadata lacks headgate.plan; headgate.export writes plans");
}

TEST(wrong_kernel) {
  PlanFile file = convolutions();
  file.plan = replaced(file.plan, R"("stem.weight")", R"("empty")");
  file.entries += R"(,"empty":{"dtype":"F32","shape":[6,4,0,3],"data_offsets":[0,0]})";
  CHECK_THROWS(parse(file.bytes()), PlanError,
               R"(m: operator 0 (conv "stem"): weight must have a kernel of 1 to 4096 in height and width, )"
               "got shape [6, 4, 0, 3]");
}

TEST(wrong_numbers_in_tensors) {
  for (float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    PlanFile file = everything_else();
    file.plan = replaced(file.plan, R"("scale": "scale")", R"("scale": "late")");
    file.floats("late", {3}, value);
    CHECK_THROWS(parse(file.bytes()), PlanError,
                 R"(m: operator 5 (affine "norm"): scale: tensor "late" must be finite, got )" + std::to_string(value) +
                     " at index 0");
  }
}

TEST(wrong_numbers_anywhere) {
  for (std::size_t index : {0, 1, 1023, 1024, 2500, 6 * 6 * 77 - 1}) {
    PlanFile file = convolutions();
    file.plan = replaced(file.plan, R"("weight": "point.weight")", R"("weight": "long")");
    file.floats("long", {6, 6, 77, 1});
    const float infinity = std::numeric_limits<float>::infinity();
    std::memcpy(file.data.data() + file.data.size() - (6 * 6 * 77 - index) * sizeof infinity, &infinity, sizeof infinity);
    CHECK_THROWS(parse(file.bytes()), PlanError,
                 "m: " + kPoint + R"(weight: tensor "long" must be finite, got inf at index )" + std::to_string(index));
  }
}

TEST(wrong_gating) {
  check_wrong(
      gated_convolutions(),
      {{R"("granularity": "group")", R"("granularity": "block")",
        kGroups + R"(granularity must be one of activation, group, channel, got "block")"},
       {R"("decisions": 3)", R"("decisions": 4)",
        kGroups + "decisions must be a divisor of the number of output channels, 6, got 4"},
       {R"("decisions": 3)", R"("decisions": 7)", kGroups + "decisions must be an integer in [1, 6], got 7"},
       {R"("decisions": 6)", R"("decisions": 3)",
        kPixels + "decisions must be the number of output channels, 6, got 3"},
       {R"("two_sided": true)", R"("two_sided": 1)", kGroups + "two_sided must be true or false, got 1"},
       {R"("center": 1.5, )", "", kGroups + "center is missing; it must be a number that fits float32"},
       {R"("center": 1.5)", R"("center": 1e39)", kGroups + "center must be a number that fits float32, got 1e+39"},
       {R"("center": 1.5)", R"("center": null)", kGroups + "center must be a number that fits float32, got null"},
       {R"("channel_bound": 0.25)", R"("channel_bound": 0.999999999)",
        kGroups + "channel_bound must be at least 0 and, as a float32, below 1, got 0.999999999"},
       {R"("threshold": "three", "group_scale")", R"("threshold": "six", "group_scale")",
        kGroups + R"(threshold: tensor "six" must have shape [3], got [6])"},
       {R"("channel_bound": 0,)", R"("channel_bound": 0, "group_scale": "six",)",
        kPixels + R"(unknown attribute "group_scale", got "six"; accepted are name, kind, inputs, )"
        "output, weight, stride, padding, dilation, activation, base_inputs, granularity, decisions, two_sided, "
        "channel_bound, threshold, score_scale, score_bias, partial_scale, partial_bias, final_scale, final_bias, "
        "input_scale, input_zero"},
       {R"("base_inputs": "pixels.base")", R"("base_inputs": "six")",
        kPixels + R"(base_inputs: tensor "six" must be I32, got "F32")"}});
}

TEST(convolution_with_listed_inputs) {
  PlanFile file = convolutions();
  file.plan = replaced(file.plan, R"("groups": 2)", R"("groups": 2, "input_channels": "lists")");
  PlanFile wrong = file;
  file.ints("lists", {2, 3}, {0, 2, 4, 1, 3, 5});
  const Plan plan = parse(file.bytes());
  CHECK((plan.ops[1].groups.channels == std::vector{0, 2, 4, 1, 3, 5}));
  CHECK_EQ(plan.ops[1].groups.per_block, 3);

  wrong.ints("lists", {3, 3}, {0, 2, 4, 1, 3, 5, 0, 1, 2});
  CHECK_THROWS(parse(wrong.bytes()), PlanError,
               "m: " + kDown + "groups must be the rows of input_channels and divide the 6 output channels, got 2");
}

TEST(wrong_base_inputs) {
  struct Case {
    std::vector<int> shape;
    std::vector<std::uint32_t> numbers;
    const char* message;
  };
  const Case cases[] = {
      {{2, 2}, {0, 2, 1, 4}, "must be input channels, in [0, 3], got 4 in row 1"},
      {{2, 2}, {0xFFFFFFFF, 2, 1, 3}, "must be input channels, in [0, 3], got -1 in row 0"},
      {{2, 2}, {0, 2, 1, 1}, "must not repeat a channel in a row, got 1 twice in row 1"},
      {{4, 1}, {0, 1, 2, 3}, "must have a number of rows that divides the 6 output channels, got 4"},
      {{1, 5}, {0, 1, 2, 3, 3},
       "must have shape [b, k] with b at least 1 and k in [1, 4], the input channels, got [1, 5]"}};
  for (const auto& [shape, numbers, message] : cases) {
    PlanFile file = gated_convolutions();
    file.plan = replaced(file.plan, R"("pixels.base")", R"("wrong")");
    file.ints("wrong", shape, numbers);
    CHECK_THROWS(parse(file.bytes()), PlanError, "m: " + kPixels + "base_inputs " + message);
  }
}

TEST(limits) {
  std::string none(200'001, '0');
  for (std::size_t i = 1; i < none.size(); i += 2) none[i] = ',';
  PlanFile file = everything_else();
  file.plan = replaced(file.plan, R"("ops": [)", R"("ops": [)" + none + ",");
  CHECK_THROWS(parse(file.bytes()), PlanError, "m: ops must be at most 100000 operators, got 100009");

  // Seventeen operators of 2^20 base inputs each share their tensors: a small file, but many copies.
  const std::vector<int> square{1024, 1024, 1, 1};
  file = PlanFile{R"({"version": 1, "producer": "test", "input": 0, "output": 17, "values": [{"shape": [1024, 1, 1]})"};
  for (int i = 0; i < 17; ++i) file.plan += R"(, {"shape": [1024, 1, 1]})";
  for (int i = 0; i < 17; ++i) {
    file.plan += std::string(i == 0 ? "], \"ops\": [" : ", ") + R"({"kind": "gated_conv", "name": "g)" +
                 std::to_string(i) + R"(", "inputs": [)" + std::to_string(i) + R"(], "output": )" + std::to_string(i + 1) +
                 R"(, "weight": "w", "base_inputs": "all", "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1],
"activation": "none", "granularity": "activation", "decisions": 1024, "two_sided": false, "channel_bound": 0,
"threshold": "v", "score_scale": "v", "score_bias": "v", "partial_scale": "v", "partial_bias": "v",
"final_scale": "v", "final_bias": "v"})";
  }
  file.plan += "]}";
  file.floats("w", square);
  file.floats("v", {1024});
  std::vector<std::uint32_t> all(std::size_t{1} << 20);
  for (std::size_t i = 0; i < all.size(); ++i) all[i] = i % 1024;
  file.ints("all", {1024, 1024}, all);
  CHECK_THROWS(parse(file.bytes()), PlanError,
               R"(m: operator 16 (gated_conv "g16"): base_inputs and its like of all operators so far list )"
               "17825792 input channels, and at most 16777216 are accepted");
}

TEST(wrong_pools) {
  check_wrong(
      everything_else(),
      {{R"("padding": [1, 1])", R"("padding": [1, 2])",
        kMax + "padding must be at most half of the kernel, got [1, 2]"},
       {R"("dilation": [1, 1])", R"("dilation": [1, 10])",
        kMax + "dilation must be at most the input's size, 9x9, where there is padding, got [1, 10]"},
       {R"("stride": [2, 2])", R"("stride": [2, 3])",
        kMax + "output must have at most the 4 columns that kernel 3x3, stride 2x3, padding 1x1 "
        "and dilation 1x1 make of 9x9, got 5"},
       {R"("kernel": [2, 2])", R"("kernel": [7, 2])",
        kAvg + "output must have at most the 0 rows that kernel 7x2, stride 2x2, padding 0x0 and "
        "dilation 1x1 make of 5x5, got 3"},
       {R"("count_include_pad": false)", R"("count_include_pad": false, "dilation": [1, 1])",
        kAvg + R"(unknown attribute "dilation", got [1, 1]; accepted are name, kind, inputs, output, )"
        "kernel, stride, padding, count_include_pad"},
       {"[3, 5, 5]", "[2, 5, 5]", kMax + "output must have the input's 3 channels, got 2"},
       {"[3, 1, 1]", "[2, 1, 1]", kSqueeze + "output must have the input's 3 channels, got 2"}});
}

TEST(wrong_shapes) {
  check_wrong(everything_else(),
              {{"[3, 1, 1]", "[3, 2, 1]",
                kExcite + "input 1 must have the output's shape, [3, 3, 3], or its channels and size "
                "1x1, got [3, 2, 1]"},
               {"\"inputs\": [5, 6]", "\"inputs\": [5, 3]",
                kSum + "input 1 must have the output's shape, [3, 3, 3], got [3, 1, 1]"},
               {"[7, 4, 2]", "[7, 4, 3]", kCat + "inputs must have the output's size, 3x3, got 1x1 for input 2"},
               {"[7, 4, 2]", "[7, 4]", kCat + "output must have the channels of all inputs, 6, got 9"}});
}

TEST(files) {
  const PlanOnDisk file(convolutions());
  const std::string& path = file.path();
  {
    const Plan plan = load_plan(path);
    CHECK_EQ(plan.ops[0].weight.data[0], 0.25F);
    const Plan moved = load_plan(path);
    CHECK(moved.ops[3].bias.data != plan.ops[3].bias.data);
  }
  std::ofstream(path, std::ios::binary | std::ios::trunc) << "";
  CHECK_THROWS(load_plan(path), PlanError, path + ": not a safetensors file: it has only 0 bytes");
  ::unlink(path.c_str());
  CHECK_THROWS(load_plan(path), PlanError, path + ": cannot open: No such file or directory");
  CHECK_THROWS(load_plan("/tmp"), PlanError, "/tmp: cannot open: Is a directory");
  CHECK_THROWS(load_plan("/dev/null"), PlanError, "/dev/null: cannot open: not a regular file");
}

TEST(every_truncation_is_an_error) {
  for (const PlanFile& file : {convolutions(), gated_convolutions(), everything_else()}) {
    const std::string bytes = file.bytes();
    for (std::size_t length = 0; length < bytes.size(); ++length) {
      try {
        parse(bytes.substr(0, length));
        CHECK(false);
      } catch (const PlanError& error) {
        const bool whole = length < 10 || std::string(error.what()).starts_with("m: truncated: ");
        CHECK(whole);
      }
    }
  }
}

}  // namespace
}  // namespace headgate
