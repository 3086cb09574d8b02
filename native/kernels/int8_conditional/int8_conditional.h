// The conditional path of a gated convolution of 8-bit numbers: completes the outputs that the gate left open, and only
// them. The same bit for bit on every instruction set, as int8_conv.h says.
#pragma once

#include <cstdint>

#include "kernels/int8_conv/int8_conv.h"

namespace headgate {

// The output holds the base path's sum P, as float32, where the decision is open; it becomes
// clamp( (P + rest) · scale + bias (+ residual) ), rest being the sum over the inputs outside the output's base block.
struct Int8ConditionalArgs {
  const ConvShape* shape;
  Int8View weights;  // a block for every decision
  Int8Map input;     // has all that the pixels read
  Map output;
  const float *scale, *bias;  // (padded channels)
  float low, high;
  const Map* residual;         // or null
  const std::uint16_t* masks;  // (images · pixels, padded_channels / 16), bit per channel; uniform in a decision
  std::int64_t begin, end;     // pixels, numbered through the batch
  void* scratch;               // `scratch_bytes`, 64-byte aligned; contents do not matter
};

struct Int8ConditionalKernels {
  std::int64_t (*scratch_bytes)(int out_channels, int decisions);
  void (*run)(const Int8ConditionalArgs&);
};

const Int8ConditionalKernels& int8_conditional_portable();
const Int8ConditionalKernels& int8_conditional_avx2();
const Int8ConditionalKernels& int8_conditional_avx512();

}  // namespace headgate
