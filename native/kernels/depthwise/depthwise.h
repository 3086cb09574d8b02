// Depthwise convolution: one input and one output channel per group. What the kernels of every instruction set provide,
// and what they are told.
#pragma once

#include <cstdint>

#include "kernels/map.h"

namespace headgate {

struct DepthwiseShape {
  int channels;
  int kernel[2], stride[2], padding[2], dilation[2];  // height, width
};

// output = clamp( sum · scale + bias (+ residual) ), for output pixels numbered through the batch:
// (image · height + y) · width + x. Arrays of constants are padded to a multiple of kLanes with zeros.
struct DepthwiseArgs {
  const DepthwiseShape* shape;
  const float* weights;  // as `pack` laid them out, 64-byte aligned
  Map input, output;     // the input's border is at least the padding
  const float *scale, *bias;
  float low, high;       // −inf and +inf where there is nothing to clamp
  const Map* residual;   // or null; of the output's size
  std::int64_t begin, end;        // pixels
  int first_vector, last_vector;  // 16-channel vectors, in [0, padded_channels / 16)
};

struct DepthwiseKernels {
  // Size in floats of packed weights, and the packing. `weight` is torch's [channels, 1, kh, kw].
  std::int64_t (*packed_size)(const DepthwiseShape&);
  void (*pack)(const DepthwiseShape&, const float* weight, float* packed);
  void (*run)(const DepthwiseArgs&);
};

const DepthwiseKernels& depthwise_portable();
const DepthwiseKernels& depthwise_neon();
const DepthwiseKernels& depthwise_avx2();
const DepthwiseKernels& depthwise_avx512();

}  // namespace headgate
