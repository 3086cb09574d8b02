// Plan files made in memory, and four valid ones that hold every kind of operator.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

namespace headgate {

struct PlanFile {
  std::string plan;                // the JSON description
  std::string entries{}, data{};  // of the tensors

  void floats(const std::string& name, const std::vector<int>& shape, float first = 0.5F) {
    std::vector<std::uint32_t> bits(elements(shape), std::bit_cast<std::uint32_t>(0.5F));
    bits[0] = std::bit_cast<std::uint32_t>(first);
    add(name, "F32", shape, bits);
  }

  // Different numbers in [−1, 1].
  void waves(const std::string& name, const std::vector<int>& shape) {
    std::vector<std::uint32_t> bits(elements(shape));
    for (std::size_t i = 0; i < bits.size(); ++i) {
      bits[i] = std::bit_cast<std::uint32_t>(std::sin(7.0F * static_cast<float>(i + 1)));
    }
    add(name, "F32", shape, bits);
  }

  void ints(const std::string& name, const std::vector<int>& shape, const std::vector<std::uint32_t>& values) {
    add(name, "I32", shape, values);
  }

  std::string header() const {
    std::string text = "{\"__metadata__\":{\"headgate.plan\":" + in_quotes(plan) + "}" + entries + "}";
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  }

  std::string bytes() const { return with_header(header()); }

  std::string with_header(const std::string& header) const {
    std::string length;
    for (int byte = 0; byte < 8; ++byte) length.push_back(static_cast<char>(header.size() >> 8 * byte));
    return length + header + data;
  }

 private:
  static std::size_t elements(const std::vector<int>& shape) {
    std::size_t product = 1;
    for (int length : shape) product *= static_cast<std::size_t>(length);
    return product;
  }

  void add(const std::string& name, const char* dtype, const std::vector<int>& shape,
           const std::vector<std::uint32_t>& words) {
    std::string lengths;
    for (int length : shape) lengths += (lengths.empty() ? "" : ",") + std::to_string(length);
    const std::size_t begin = data.size();
    for (std::uint32_t word : words) {
      for (int byte = 0; byte < 4; ++byte) data.push_back(static_cast<char>(word >> 8 * byte));
    }
    entries += ",\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":[" + lengths + "],\"data_offsets\":[" +
               std::to_string(begin) + "," + std::to_string(data.size()) + "]}";
  }

  static std::string in_quotes(const std::string& text) {
    std::string quoted = "\"";
    for (char c : text) {
      char escaped[8] = {c};
      if (c == '"' || c == '\\') std::snprintf(escaped, sizeof escaped, "\\%c", c);
      if (static_cast<unsigned char>(c) < 0x20) std::snprintf(escaped, sizeof escaped, "\\u%04x", c);
      quoted += escaped;
    }
    return quoted + "\"";
  }
};

inline PlanFile convolutions() {
  PlanFile file{R"({"version": 1, "producer": "test", "input": 0, "output": 4,
"values": [{"shape": [4, 8, 9]}, {"shape": [6, 8, 9]}, {"shape": [6, 4, 5]}, {"shape": [6, 4, 5]},
 {"shape": [10, 1, 1]}],
"ops": [
{"kind": "conv", "name": "stem", "inputs": [0], "output": 1, "weight": "stem.weight", "bias": "stem.bias", "groups": 1,
 "stride": [1, 1], "padding": [2, 2], "dilation": [2, 2], "activation": "relu"},
{"kind": "conv", "name": "down", "inputs": [1], "output": 2, "weight": "down.weight", "bias": "down.bias", "groups": 2,
 "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "activation": "hardswish", "precision": "bfloat16"},
{"kind": "conv", "name": "point", "inputs": [2, 2], "output": 3, "weight": "point.weight", "bias": "down.bias",
 "groups": 1, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "activation": "none", "input_scale": 0.25,
 "input_zero": 3},
{"kind": "conv", "name": "fc", "inputs": [3], "output": 4, "weight": "fc.weight", "bias": "fc.bias", "groups": 1,
 "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "activation": "none"}]})"};
  file.floats("stem.weight", {6, 4, 3, 3}, 0.25F);
  file.floats("stem.bias", {6});
  file.floats("down.weight", {6, 3, 3, 3});
  file.floats("down.bias", {6});
  file.floats("point.weight", {6, 6, 1, 1});
  file.floats("fc.weight", {10, 6, 4, 5});
  file.floats("fc.bias", {10});
  return file;
}

inline PlanFile gated_convolutions() {
  const std::string affines =
      R"("score_scale": "six", "score_bias": "six", "partial_scale": "six", "partial_bias": "six",
 "final_scale": "six", "final_bias": "six"})";
  PlanFile file{R"({"version": 1, "producer": "test", "input": 0, "output": 3,
"values": [{"shape": [4, 5, 5]}, {"shape": [6, 5, 5]}, {"shape": [6, 5, 5]}, {"shape": [6, 3, 3]}], "ops": [
{"kind": "gated_conv", "name": "pixels", "inputs": [0], "output": 1, "weight": "pixels.weight",
 "base_inputs": "pixels.base", "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "activation": "relu6",
 "granularity": "activation", "decisions": 6, "two_sided": false, "threshold": "six", "channel_bound": 0,
 "input_scale": 2, "input_zero": 0, )" +
                affines + R"(,
{"kind": "gated_conv", "name": "groups", "inputs": [1, 1], "output": 2, "weight": "groups.weight",
 "base_inputs": "groups.base", "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "activation": "tanh",
 "granularity": "group", "decisions": 3, "two_sided": true, "center": 1.5, "threshold": "three", "group_scale": "three",
 "channel_bound": 0.25, )" + affines + R"(,
{"kind": "gated_conv", "name": "channels", "inputs": [2], "output": 3, "weight": "channels.weight",
 "base_inputs": "channels.base", "stride": [2, 2], "padding": [1, 1], "dilation": [1, 1], "activation": "none",
 "granularity": "channel", "decisions": 6, "two_sided": false, "threshold": "six", "group_scale": "six",
 "channel_bound": 0, )" + affines + "]}"};
  file.floats("pixels.weight", {6, 4, 3, 3});
  file.floats("groups.weight", {6, 6, 1, 1});
  file.floats("channels.weight", {6, 6, 3, 3});
  file.floats("six", {6});
  file.floats("three", {3});
  file.ints("pixels.base", {2, 2}, {0, 2, 1, 3});
  file.ints("groups.base", {3, 1}, {5, 0, 0});
  file.ints("channels.base", {1, 3}, {3, 4, 5});
  return file;
}

// In float32 throughout, decided pixel by pixel, some open and some not: maps of so many pixels that engines gate a batch
// in several pieces, and more output channels than two words of a mask have bits.
inline PlanFile float_gates() {
  PlanFile file{R"({"version": 1, "producer": "test", "input": 0, "output": 3,
"values": [{"shape": [5, 9, 8]}, {"shape": [33, 9, 8]}, {"shape": [18, 9, 8]}, {"shape": [18, 9, 8]}], "ops": [
{"kind": "gated_conv", "name": "pixels", "inputs": [0], "output": 1, "weight": "pixels.weight",
 "base_inputs": "pixels.base", "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "activation": "relu",
 "granularity": "activation", "decisions": 33, "two_sided": false, "threshold": "thirty_three", "channel_bound": 0,
 "score_scale": "thirty_three", "score_bias": "waves", "partial_scale": "thirty_three", "partial_bias": "waves",
 "final_scale": "thirty_three", "final_bias": "waves"},
{"kind": "gated_conv", "name": "groups", "inputs": [1], "output": 2, "weight": "groups.weight",
 "base_inputs": "groups.base", "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "activation": "silu",
 "granularity": "group", "decisions": 6, "two_sided": false, "threshold": "thresholds", "group_scale": "six",
 "channel_bound": 0, "score_scale": "eighteen", "score_bias": "biases", "partial_scale": "eighteen",
 "partial_bias": "biases", "final_scale": "eighteen", "final_bias": "biases"},
{"kind": "gated_conv", "name": "sum", "inputs": [2, 2], "output": 3, "weight": "sum.weight",
 "base_inputs": "sum.base", "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "activation": "relu6",
 "granularity": "activation", "decisions": 18, "two_sided": true, "center": 0.75, "threshold": "eighteen",
 "channel_bound": 0, "score_scale": "eighteen", "score_bias": "biases", "partial_scale": "eighteen",
 "partial_bias": "biases", "final_scale": "eighteen", "final_bias": "biases"}]})"};
  file.waves("pixels.weight", {33, 5, 3, 3});
  file.waves("groups.weight", {18, 33, 1, 1});
  file.waves("sum.weight", {18, 18, 1, 1});
  file.floats("thirty_three", {33});
  file.waves("waves", {33});
  file.waves("biases", {18});
  file.waves("thresholds", {6});
  file.floats("six", {6});
  file.floats("eighteen", {18});
  file.ints("pixels.base", {3, 2}, {0, 1, 2, 3, 4, 0});
  file.ints("groups.base", {2, 4}, {0, 8, 16, 32, 1, 2, 3, 4});
  file.ints("sum.base", {1, 2}, {3, 7});
  return file;
}

// All by Winograd's algorithm: a stem, groups of 8 outputs that read listed inputs, and gates for groups, of four
// channels and of one.
inline PlanFile tiled_convolutions() {
  PlanFile file{R"({"version": 1, "producer": "test", "input": 0, "output": 4,
"values": [{"shape": [3, 15, 13]}, {"shape": [32, 8, 7]}, {"shape": [16, 8, 7]}, {"shape": [16, 8, 7]},
 {"shape": [16, 8, 7]}], "ops": [
{"kind": "conv", "name": "stem", "inputs": [0], "output": 1, "weight": "stem.weight", "bias": "thirty_two", "groups": 1,
 "stride": [2, 2], "padding": [3, 3], "dilation": [1, 1], "activation": "relu"},
{"kind": "conv", "name": "narrow", "inputs": [1], "output": 2, "weight": "narrow.weight", "bias": "sixteen", "groups": 2,
 "input_channels": "narrow.inputs", "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "activation": "relu"},
{"kind": "gated_conv", "name": "groups", "inputs": [2, 2], "output": 3, "weight": "groups.weight",
 "base_inputs": "groups.base", "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "activation": "relu6",
 "granularity": "group", "decisions": 4, "two_sided": true, "center": 1.5, "threshold": "four", "group_scale": "four",
 "channel_bound": 0, "score_scale": "scales", "score_bias": "sixteen", "partial_scale": "scales",
 "partial_bias": "sixteen", "final_scale": "scales", "final_bias": "sixteen"},
{"kind": "gated_conv", "name": "alone", "inputs": [3], "output": 4, "weight": "alone.weight",
 "base_inputs": "groups.base", "stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "activation": "none",
 "granularity": "group", "decisions": 16, "two_sided": false, "threshold": "sixteen", "group_scale": "gains",
 "channel_bound": 0, "score_scale": "scales", "score_bias": "sixteen", "partial_scale": "scales",
 "partial_bias": "sixteen", "final_scale": "scales", "final_bias": "sixteen"}]})"};
  file.waves("stem.weight", {32, 3, 7, 7});
  file.waves("narrow.weight", {16, 8, 3, 3});
  file.waves("groups.weight", {16, 16, 3, 3});
  file.waves("alone.weight", {16, 16, 3, 3});
  file.waves("thirty_two", {32});
  file.waves("sixteen", {16});
  file.floats("scales", {16}, 0.0625F);
  file.floats("gains", {16}, 3.0F);
  file.floats("four", {4});
  file.ints("narrow.inputs", {2, 8}, {0, 2, 4, 6, 17, 19, 21, 31, 1, 3, 5, 7, 16, 18, 20, 30});
  file.ints("groups.base", {2, 8}, {0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15});
  return file;
}

inline PlanFile everything_else() {
  PlanFile file{R"({"version": 1, "producer": "test", "input": 0, "output": 8,
"values": [{"shape": [3, 9, 9]}, {"shape": [3, 5, 5]}, {"shape": [3, 3, 3]}, {"shape": [3, 1, 1]}, {"shape": [3, 3, 3]},
 {"shape": [3, 3, 3]}, {"shape": [3, 3, 3]}, {"shape": [3, 3, 3]}, {"shape": [9, 3, 3]}],
"ops": [
{"kind": "max_pool", "name": "max", "inputs": [0], "output": 1, "kernel": [3, 3], "stride": [2, 2], "padding": [1, 1],
 "dilation": [1, 1]},
{"kind": "avg_pool", "name": "avg", "inputs": [1], "output": 2, "kernel": [2, 2], "stride": [2, 2], "padding": [0, 0],
 "count_include_pad": false},
{"kind": "adaptive_avg_pool", "name": "squeeze", "inputs": [2], "output": 3},
{"kind": "mul", "name": "excite", "inputs": [2, 3], "output": 4},
{"kind": "activation", "name": "silu", "inputs": [4], "output": 5, "activation": "silu"},
{"kind": "affine", "name": "norm", "inputs": [4], "output": 6, "scale": "scale", "bias": "bias", "activation": "relu"},
{"kind": "add", "name": "sum", "inputs": [5, 6], "output": 7, "activation": "sigmoid"},
{"kind": "concat", "name": "cat", "inputs": [7, 4, 2], "output": 8}]})"};
  file.floats("scale", {3}, 2.0F);
  file.floats("bias", {3});
  return file;
}

}  // namespace headgate
