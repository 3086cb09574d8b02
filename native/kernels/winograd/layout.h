// Where the Winograd kernels find transformed weights, inputs and sums. An *element* is one of the positions of a
// transformed tile, 4 × 4 or 6 × 6; element by element, transforming turns a convolution into a product of matrices.
#pragma once

#include <cstdint>

#include "kernels/winograd/winograd.h"

namespace headgate {

// The side of a transformed tile: outputs and taps, but one.
constexpr int winograd_side(int tile) { return tile == 2 ? 4 : 6; }

// The points at which a tile's polynomials are evaluated: 0, ±1 and ∞ for 4 × 4; 0, ±kFarPoint, ±kNearPoint and ∞ for 6
// × 6. These have the smallest errors of those tried, and all coefficients of inputs' and outputs' transforms are
// exact.
constexpr double kFarPoint = 1.5, kNearPoint = 0.625;

// The scratch of a run holds transformed inputs and sums, [element][vector][tile][lane], of the tiles at hand. Tiles
// lie side by side, so that kernels reach them by constant offsets; elements an odd number of lines apart, so that they
// do not compete for the same set of the cache.
struct WinogradScratch {
  std::int64_t tiles;    // at hand, at most
  std::int64_t vector;   // floats from one vector of kLanes inputs or sums to the next
  std::int64_t input_element, sum_element;  // from one element to the next
  std::int64_t sums;     // where they begin
  std::int64_t size;
};

// Sums are formed for so many vectors of kLanes outputs at a time.
constexpr int kSumVectors = 2;

WinogradScratch winograd_scratch(const WinogradShape& shape);

// The head of packed weights. Positions are in floats from the start of the packed weights.
//
// Two blocks of 8 outputs share a vector of 16, lane by lane in turn, and so do their inputs: at each step one load
// spreads an input of each. Transformed inputs are put into that order, sums back into that of the channels.
struct WinogradLayout {
  WinogradScratch scratch;
  std::int32_t paired;  // 1 if two blocks share a vector of outputs, else 0
  std::int32_t run;     // vectors of adjacent outputs that read the same inputs; a multiple starts every block, or pair
  std::int32_t steps;   // of a sum: inputs of a block, of all phases
  std::int64_t panel;   // from one panel of weights, [panel][element][step][kLanes], to the next
  std::int64_t weight_element;
  std::int64_t weights;
  std::int64_t inputs;  // int32 [block, or pair][step]: where its input lies in the scratch
  std::int64_t order;   // int32 [channel], if paired: from where in its vector each lane of inputs comes
};

// For vectors of kWidth lanes: 4, 8 or 16.
template <int kWidth>
std::int64_t winograd_packed_size(const WinogradShape& shape);
template <int kWidth>
void winograd_pack(const WinogradShape& shape, const float* weight, float* packed);

}  // namespace headgate
