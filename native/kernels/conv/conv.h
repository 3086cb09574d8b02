// Convolution, dense or in groups, as outer products of pixels and output channels: what the kernels of every
// instruction set provide, and what they are told. Also the base path of gated convolutions.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/map.h"

namespace headgate {

struct ConvShape {
  int in_channels, out_channels;
  int kernel[2], stride[2], padding[2], dilation[2];  // height, width
  // Output block j, outputs [j · out_channels / blocks, …), reads the input channels inputs[j · inputs_per_block …].
  int blocks, inputs_per_block;
  std::vector<std::int32_t> inputs;  // (blocks · inputs_per_block)
};

// What follows the sum. Arrays are padded to a multiple of kLanes with zeros.
enum class Epilogue {
  plain,   // output = clamp( sum · scale + bias (+ residual) )
  raw,     // output = sum
  gate,    // open = score > threshold, of score = sum · score_scale + score_bias, or, two-sided, center − |…|, or
           // gain · the sum of its group's scores; masks get the open bits;
           // output = open ? sum : clamp( sum · scale + bias (+ residual) )
  masked,  // where masks has the bit: output = clamp( sum · scale + bias (+ residual) ); elsewhere output is kept
};

struct ConvEpilogue {
  Epilogue kind;
  const float *scale, *bias;
  const float *score_scale, *score_bias, *threshold;  // gate
  bool two_sided;
  float center;
  // gate: of groups, which are a divisor of the kernels' `lanes`; null for decisions of single activations
  const float* gain;
  int group_size;
  float low, high;      // clamp; −inf and +inf where there is nothing to clamp
  const Map* residual;  // or null; of the output's size
  // (images · pixels, padded_channels / 16) words; bit l of word v is channel 16 v + l. Bits beyond the channels are 0.
  std::uint16_t* masks;
};

// Output pixels are numbered through the batch: (image · height + y) · width + x.
struct ConvArgs {
  const ConvShape* shape;
  const float* weights;  // as `pack` laid them out, 64-byte aligned
  Map input, output;     // the input's border is at least the padding
  ConvEpilogue epilogue;
  std::int64_t begin, end;            // pixels
  int first_vector, last_vector;      // 16-channel vectors of output channels, in [0, padded_channels / 16)
};

struct ConvKernels {
  int lanes;  // of a vector
  // Size in floats of packed weights, and the packing. `weight` is torch's [out, inputs_per_block, kh, kw].
  std::int64_t (*packed_size)(const ConvShape&);
  void (*pack)(const ConvShape&, const float* weight, float* packed);
  void (*run)(const ConvArgs&);
  // The same as `pack` in parts: of outputs [first, last), `first` a multiple of kLanes, in ascending order from 0 on.
  // What was read is not read again.
  void (*pack_outputs)(const ConvShape&, const float* weight, float* packed, int first, int last);
};

const ConvKernels& conv_portable();
const ConvKernels& conv_neon();
const ConvKernels& conv_avx2();
const ConvKernels& conv_avx512();

}  // namespace headgate
