// The conditional path of a gated convolution: completes the outputs that the gate left open, and only them.
#pragma once

#include <cstdint>

#include "kernels/conv/conv.h"
#include "kernels/map.h"

namespace headgate {

// The output holds the raw base path's sum P where the decision is open; it becomes
// clamp( (P + rest) · scale + bias (+ residual) ), rest being the sum over the inputs outside the output's base block.
struct ConditionalArgs {
  const ConvShape* shape;  // of the whole convolution: blocks and inputs are the base path's
  const float* weights;    // as `pack` laid them out, 64-byte aligned
  Map input, output;
  const float *scale, *bias;  // (padded channels)
  float low, high;
  const Map* residual;          // or null
  const std::uint16_t* masks;   // (images · pixels, padded_channels / 16), bit per channel; uniform in a group
  int decisions;                // group granularity: number of output groups; else the output channels
  std::int64_t begin, end;      // images
  int first_row, last_row;      // rows of every image
  int first_channel, last_channel;  // output channels; whole groups
  void* scratch;                // `scratch_bytes`, 64-byte aligned; contents do not matter
};

struct ConditionalKernels {
  // Size in floats of packed weights, and the packing. `decisions` as in ConditionalArgs; `weight` is torch's full
  // [out, in, kh, kw].
  std::int64_t (*packed_size)(const ConvShape&, int decisions);
  void (*pack)(const ConvShape&, int decisions, const float* weight, float* packed);
  std::int64_t (*scratch_bytes)(const ConvShape&, const Map& input, const Map& output);
  void (*run)(const ConditionalArgs&);
};

// One decision per pixel and channel.
const ConditionalKernels& conditional_activation_portable();
const ConditionalKernels& conditional_activation_neon();
const ConditionalKernels& conditional_activation_avx2();
const ConditionalKernels& conditional_activation_avx512();

// One decision per pixel and output group.
const ConditionalKernels& conditional_group_portable();
const ConditionalKernels& conditional_group_neon();
const ConditionalKernels& conditional_group_avx2();
const ConditionalKernels& conditional_group_avx512();

}  // namespace headgate
