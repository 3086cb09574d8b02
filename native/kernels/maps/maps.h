// Everything that is neither a convolution nor a gate: layouts, frames, pooling, element by element. What the kernels
// of every instruction set provide.
#pragma once

#include <cstdint>

#include "kernels/map.h"

namespace headgate {

enum class Function { none, relu, relu6, hardswish, hardsigmoid, silu, sigmoid, tanh };

// Rows of the output, numbered through the batch: image · height + y.
struct RowRange {
  std::int64_t begin, end;
};

struct PoolWindow {
  int kernel[2], stride[2], padding[2], dilation[2];
  bool count_include_pad;
};

// Maps of an operator have equal image counts; their padded channels hold zeros, and those of outputs get zeros.
struct MapsKernels {
  void (*from_nchw)(const float* input, const Map& output, RowRange rows);
  void (*to_nchw)(const Map& input, float* output, RowRange rows);
  void (*max_pool)(const Map& input, const PoolWindow& window, const Map& output, RowRange rows);
  void (*avg_pool)(const Map& input, const PoolWindow& window, const Map& output, RowRange rows);
  void (*adaptive_avg_pool)(const Map& input, const Map& output, RowRange rows);
  void (*add)(const Map& a, const Map& b, const Map& output, Function function, RowRange rows);
  void (*mul)(const Map& a, const Map& b, const Map& output, RowRange rows);  // b may be 1×1
  // output = function( input · scale + bias ), without scale and bias where they are null; may work in place
  void (*affine)(const Map& input, const float* scale, const float* bias, const Map& output, Function function,
                 RowRange rows);
  // Copies the input's channels to the output's from channel `first` on, and zeros the padding behind the last ones.
  void (*copy_channels)(const Map& input, const Map& output, int first, RowRange rows);
};

const MapsKernels& maps_portable();
const MapsKernels& maps_neon();
const MapsKernels& maps_avx2();
const MapsKernels& maps_avx512();

}  // namespace headgate
