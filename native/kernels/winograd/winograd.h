// 3×3 convolution of stride 1, dense or in groups, by Winograd's algorithm, with fewer multiplications than products:
// docs/design/0004-winograd.md. What the kernels of every instruction set provide, and what they are told.
#pragma once

#include <cstdint>

#include "kernels/conv/conv.h"
#include "kernels/map.h"

namespace headgate {

// The output is computed in tiles of `tile` × `tile` pixels, 2 or 4, from tile + 2 input pixels a side.
struct WinogradShape {
  int in_channels, out_channels;
  int padding[2];  // height, width
  int tile;
  // Output block j of so many equal ones reads input block j. Blocks of inputs and outputs, if there are several, are
  // multiples of kLanes.
  int blocks = 1;
};

// Tiles are numbered through the batch: (image · tile rows + row) · tile columns + column. Those at the map's right and
// lower edge may reach beyond it.
struct WinogradArgs {
  const WinogradShape* shape;
  const float* weights;   // as `winograd_pack` laid them out, 64-byte aligned
  Map input, output;      // the input's border is at least the padding
  ConvEpilogue epilogue;
  std::int64_t begin, end;        // tiles
  int first_vector, last_vector;  // 16-channel vectors of output channels, in [0, padded_channels / 16)
  float* scratch;                 // of `winograd_scratch_size`, 64-byte aligned; need not be initialised
};

struct WinogradKernels {
  void (*run)(const WinogradArgs&);
};

// Sizes in floats of packed weights and of a run's scratch, and the packing, the same for every instruction set.
// `weight` is torch's [out, in / blocks, 3, 3].
std::int64_t winograd_packed_size(const WinogradShape& shape);
void winograd_pack(const WinogradShape& shape, const float* weight, float* packed);
std::int64_t winograd_scratch_size(const WinogradShape& shape);

const WinogradKernels& winograd_portable();
const WinogradKernels& winograd_neon();
const WinogradKernels& winograd_avx2();
const WinogradKernels& winograd_avx512();

}  // namespace headgate
