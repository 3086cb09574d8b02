// A plan: what `headgate.export` writes (docs/design/0002-plan-and-engine.md), parsed and checked.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "headgate/engine.h"

namespace headgate {

enum class OpKind { conv, gated_conv, max_pool, avg_pool, adaptive_avg_pool, add, mul, concat, affine, activation };
enum class Activation { none, relu, relu6, hardswish, hardsigmoid, silu, sigmoid, tanh };
enum class Granularity { activation, group, channel };

struct Shape {
  int channels, height, width;
  bool operator==(const Shape&) const = default;
};

// A tensor in the mapped file; valid as long as the plan lives. Empty where the operator has none.
struct FloatTensor {
  const float* data = nullptr;
  std::vector<std::int64_t> shape;
};

struct Window {  // height, width
  std::array<int, 2> kernel{1, 1}, stride{1, 1}, padding{0, 0}, dilation{1, 1};
};

// Which input channels each of equal blocks of outputs reads.
struct InputLists {
  int blocks = 0, per_block = 0;
  std::vector<std::int32_t> channels;  // (blocks · per_block)
};

struct Gating {
  Granularity granularity;
  int decisions;
  bool two_sided;
  float center, channel_bound;
  InputLists base;
  FloatTensor threshold, group_scale, score_scale, score_bias, partial_scale, partial_bias, final_scale, final_bias;
};

// How a convolution's input is rounded to integers in [0, 255]: x ≈ (q − zero) · scale.
struct InputRange {
  float scale;
  int zero;
};

struct Op {
  OpKind kind;
  std::string name;
  std::vector<int> inputs;
  int output;
  Activation activation = Activation::none;
  Window window;                 // convolutions and pools
  InputLists groups;             // conv
  bool count_include_pad = true;  // avg_pool
  FloatTensor weight, bias;      // conv, gated_conv; affine has scale in weight
  std::optional<Gating> gating;  // gated_conv
  std::optional<InputRange> int8;  // conv, gated_conv: computed in 8-bit integers
  bool bfloat16 = false;           // the same: computed from numbers rounded to bfloat16

  bool narrow() const { return int8 || bfloat16; }
};

class MappedFile;

struct Plan {
  std::shared_ptr<const MappedFile> file;  // owns the tensors' memory
  std::string producer;
  std::vector<Shape> values;
  std::vector<Op> ops;  // in order of execution
  int input, output;
};

// Maps, parses and checks a plan file. Throws PlanError.
Plan load_plan(const std::string& path);

// The same for bytes that are in memory; `where` is what error messages call them.
Plan parse_plan(std::shared_ptr<const MappedFile> file, const std::string& where);

}  // namespace headgate
