// Convolution of 8-bit numbers, dense or in groups, with 32-bit sums: what the kernels of every instruction set
// provide, and what they are told. Also the base path of gated convolutions. Integer sums are exact and what follows
// them is computed without fused multiply-adds: the results are the same bit for bit on every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/conv/conv.h"
#include "kernels/quantise/quantise.h"

namespace headgate {

// Adjacent outputs that read the same inputs. A lane of their vectors holds one output's products with one of `spread`
// adjacent words of inputs: few outputs fill a vector, too, if they have inputs enough.
struct Int8Block {
  int first_output, outputs;
  int spread;                 // a power of two, up to the lanes
  int vectors;                // of lanes / spread outputs each
  int steps;                  // of a kernel row; each reads `spread` words from every pixel
  bool shared;                // three taps lie in adjacent pixels, each with the same steps: loads can serve all three
  int alike;                  // blocks from this one on that differ in their places alone
  std::int64_t first_offset;  // of a kernel row's steps
  std::int64_t weights;       // bytes to [vector][kernel row][step][lane][element]
};

// Packed weights; owned by Int8Weights (packing.h).
struct Int8View {
  const Int8Block* blocks;
  int block_count;
  const std::int64_t* offsets;  // in elements, from a pixel's first tap in a kernel row
  const std::byte* weights;     // 64-byte aligned
  const std::int32_t* start;    // (padded channels): what every sum begins with
};

enum class Int8Epilogue {
  plain,  // output = clamp( sum · scale + bias (+ residual) )
  gate,   // as Epilogue::gate
  group,  // one decision for adjacent channels: gain · Σ n > threshold
};

// What follows a sum, which is converted to float32 first. Σ n of a group adds lanes half a group apart until one is
// left, where its size is a power of two; one after another elsewhere.
struct Int8Ending {
  Int8Epilogue kind;
  ConvEpilogue common;  // all but its kind
  const float* gain;    // group, (padded channels)
  int group_size;
};

// Output pixels are numbered through the batch: (image · height + y) · width + x.
struct Int8ConvArgs {
  const ConvShape* shape;
  Int8View weights;
  Int8Map input;  // has all that the pixels read
  Map output;
  Int8Ending ending;
  std::int64_t begin, end;  // pixels
  std::int32_t* scratch;    // `scratch_words`, 64-byte aligned
};

struct Int8ConvKernels {
  std::int64_t (*scratch_words)(int out_channels);
  void (*run)(const Int8ConvArgs&);
};

const Int8ConvKernels& int8_conv_portable();
const Int8ConvKernels& int8_conv_avx2();
const Int8ConvKernels& int8_conv_avx512();

}  // namespace headgate
