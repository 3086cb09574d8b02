#include "engine/step.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "headgate/parallel.h"

namespace headgate {

std::unique_ptr<Step> make_step(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights) {
  if (op.narrow()) return make_narrow_conv_step(plan, op, kernels);
  switch (op.kind) {
    case OpKind::conv: return make_conv_step(plan, op, kernels, weights);
    case OpKind::gated_conv: return make_gated_conv_step(plan, op, kernels, weights);
    default: return make_map_step(plan, op, kernels);
  }
}

Aligned<float> per_channel(const FloatTensor& tensor, int channels, float fill) {
  Aligned<float> values(padded_channels(channels));
  if (tensor.data != nullptr) {
    std::copy_n(tensor.data, channels, values.data());
  } else {
    std::fill_n(values.data(), channels, fill);
  }
  return values;
}

Function function_of(Activation activation) {
  switch (activation) {
    case Activation::none: break;
    case Activation::relu: return Function::relu;
    case Activation::relu6: return Function::relu6;
    case Activation::hardswish: return Function::hardswish;
    case Activation::hardsigmoid: return Function::hardsigmoid;
    case Activation::silu: return Function::silu;
    case Activation::sigmoid: return Function::sigmoid;
    case Activation::tanh: return Function::tanh;
  }
  return Function::none;
}

Clamp clamp_of(Activation activation) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  switch (activation) {
    case Activation::none: return {true, -kInfinity, kInfinity};
    case Activation::relu: return {true, 0.0f, kInfinity};
    case Activation::relu6: return {true, 0.0f, 6.0f};
    default: return {false, -kInfinity, kInfinity};
  }
}

ConvShape conv_shape(const Plan& plan, const Op& op, const InputLists& lists) {
  ConvShape shape{};
  shape.in_channels = plan.values[op.inputs[0]].channels;
  shape.out_channels = plan.values[op.output].channels;
  for (int i = 0; i < 2; ++i) {
    shape.kernel[i] = op.window.kernel[i], shape.stride[i] = op.window.stride[i];
    shape.padding[i] = op.window.padding[i], shape.dilation[i] = op.window.dilation[i];
  }
  shape.blocks = lists.blocks;
  shape.inputs_per_block = lists.per_block;
  shape.inputs = lists.channels;
  return shape;
}

InputLists every_input(const Plan& plan, const Op& op) {
  InputLists all{1, plan.values[op.inputs[0]].channels, {}};
  all.channels.resize(all.per_block);
  std::iota(all.channels.begin(), all.channels.end(), 0);
  return all;
}

ConvShape dense_shape(const Plan& plan, const Op& op) { return conv_shape(plan, op, every_input(plan, op)); }

void split(std::int64_t count, std::int64_t unit, int threads, const Body& body) {
  const std::int64_t units = (count + unit - 1) / unit;
  const int parts = static_cast<int>(std::min<std::int64_t>(units, threads));
  const auto part = [&](int i) {
    const Range range = slice(units, i, parts);
    body(i, range.begin * unit, std::min(range.end * unit, count));
  };
  if (parts == 1) {
    part(0);
  } else {
    parallel_for(parts, part);
  }
}

}  // namespace headgate
