// How the convolution kernels see their weights. Packing needs no vectors, so that one plain source serves every width.
#pragma once

#include <cstdint>

#include "kernels/conv/conv.h"

namespace headgate {

// Where the lanes of a vector of outputs find their inputs at one step, that is at one tap and one input of the list.
enum class LaneInputs : std::int32_t {
  one,     // all in one channel: the vector lies within a block
  window,  // in as many adjacent channels as the vector has lanes: one load and one permutation
  spread,  // anywhere: one masked multiply-add per block that the vector touches
};

// The head of packed weights, one cache line. Positions are in floats from the start of the packed weights.
//
// Weights lie in panels of kLanes outputs: [panel][kernel row][step][lane]. A kernel row's steps are its taps × inputs;
// inputs run fastest, except if `shared`: then taps do, for a kernel that uses every load of an input for all three.
// No weight is added to fill vectors: a lane multiplies nothing but its own block's inputs, so that an infinite or NaN
// input reaches no output of another block.
struct ConvLayout {
  LaneInputs lanes;
  std::int32_t shared;
  std::int32_t run;    // vectors of adjacent outputs that read the same inputs; a multiple starts every block
  std::int32_t steps;  // of one kernel row
  std::int64_t panel;  // floats from one panel of weights to the next
  std::int64_t weights;
  std::int64_t offsets;  // int32 [block, or vector if `window`][step]: from the pixel's first tap, in a row
  std::int64_t lane_of;  // int32 [vector][step][lane], if `window`: the lane of the window that each lane takes
};
static_assert(sizeof(ConvLayout) <= kLanes * sizeof(float));

// For vectors of kWidth lanes: 4, 8 or 16.
template <int kWidth>
std::int64_t conv_packed_size(const ConvShape& shape);
template <int kWidth>
void conv_pack(const ConvShape& shape, const float* weight, float* packed);
template <int kWidth>
void conv_pack_outputs(const ConvShape& shape, const float* weight, float* packed, int first, int last);

}  // namespace headgate
