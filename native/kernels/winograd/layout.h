// Where the Winograd kernels find transformed weights, inputs and sums. An *element* is one of the (tile + 2)² positions
// of a transformed tile; element by element, transforming turns a convolution into a product of matrices.
#pragma once

#include <cstdint>

#include "kernels/winograd/winograd.h"

namespace headgate {

// The points at which a tile's polynomials are evaluated: 0, ±kFarPoint, ±kNearPoint and ∞ for a tile of 4; 0, ±1 and ∞ for 2.
// These have the smallest errors of those tried, and all coefficients of inputs' and outputs' transforms are exact.
constexpr double kFarPoint = 1.5, kNearPoint = 0.625;

// Weights:           [output vector][element][input][lane]
// Inputs and sums:   [element][vector][tile][lane], of the tiles at hand. Tiles lie side by side, so that kernels reach
//                    them by constant offsets; elements an odd number of lines apart, so that they do not compete for
//                    the same set of the cache.
// All in floats.
struct WinogradLayout {
  std::int64_t tiles;           // at hand, at most
  std::int64_t panel;           // from one output vector of weights to the next
  std::int64_t weight_element;  // from one element to the next: of weights, of inputs, of sums
  std::int64_t input_element, sum_element;
  std::int64_t vector;   // from one vector of inputs or sums to the next
  std::int64_t sums;     // where they begin in the scratch
  std::int64_t scratch;  // its size
};

// Sums are formed for so many vectors of outputs at a time.
constexpr int kSumVectors = 2;

WinogradLayout winograd_layout(const WinogradShape& shape);

}  // namespace headgate
