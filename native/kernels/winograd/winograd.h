// 3×3 convolutions of stride 1, dense or in groups, and 7×7 ones of stride 2 of few channels, by Winograd's algorithm,
// with fewer multiplications than products: docs/design/0004-winograd.md. What the kernels of every instruction set
// provide, and what they are told.
#pragma once

#include <cstdint>

#include "kernels/conv/conv.h"
#include "kernels/map.h"

namespace headgate {

// A stride of 2 makes four convolutions of stride 1, of even and odd rows and columns. Together they may have a line of
// channels, so many each.
constexpr int kPhaseChannels = kLanes / 4;

// The convolution, and the side of the tiles in which its output is computed: 2 or 4 pixels, or 3 if the stride is 2.
struct WinogradShape {
  ConvShape conv;
  int tile;
};

// Tiles are numbered through the batch: (image · tile rows + row) · tile columns + column. Those at the map's right and
// lower edge may reach beyond it.
struct WinogradArgs {
  const WinogradShape* shape;
  const float* weights;   // as `pack` laid them out, 64-byte aligned
  Map input, output;      // the input's border is at least the padding
  ConvEpilogue epilogue;
  std::int64_t begin, end;        // tiles
  int first_vector, last_vector;  // 16-channel vectors of output channels, in [0, padded_channels / 16)
  float* scratch;                 // of `winograd_scratch_size`, 64-byte aligned; need not be initialised
};

struct WinogradKernels {
  // Size in floats of packed weights, and the packing. `weight` is torch's [out, inputs_per_block, kh, kw].
  std::int64_t (*packed_size)(const WinogradShape&);
  void (*pack)(const WinogradShape&, const float* weight, float* packed);
  void (*run)(const WinogradArgs&);
};

// Whether the kernels find the inputs of each block of outputs: several blocks have 8 or a multiple of 16 outputs, and
// where two share a vector of outputs, their inputs share vectors, too. No other convolution in blocks may be packed.
bool winograd_finds_inputs(const ConvShape& shape);

// Size in floats of a run's scratch.
std::int64_t winograd_scratch_size(const WinogradShape& shape);

const WinogradKernels& winograd_portable();
const WinogradKernels& winograd_neon();
const WinogradKernels& winograd_avx2();
const WinogradKernels& winograd_avx512();

}  // namespace headgate
