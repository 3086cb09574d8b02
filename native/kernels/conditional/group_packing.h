// How the group kernels' weights are packed, by the width of the instruction set's vectors.
#pragma once

#include <cstdint>

#include "kernels/conditional/conditional.h"

namespace headgate {

// Output channels that share a decision are computed together, as outer products of open pixels and channels. A vector
// of weights holds `channels` channels; where these are fewer than its lanes, each has `inputs` lanes, of adjacent
// inputs. So many inputs are a unit. A group's units are those with an input outside the base block of one of its channels.
struct GroupLayout {
  int groups, size;      // output channels per group
  int channels, inputs;  // of a vector
  int vectors;           // per group
};

// Small groups take two vectors rather than one: an input that is spread over a vector should serve more than one. Only
// AVX-512 multiplies by a single spread input without an instruction for it.
[[gnu::always_inline]] constexpr GroupLayout group_layout(int out_channels, int decisions, int width) {
  GroupLayout l{decisions, out_channels / decisions, 1, 0, 0};
  const bool two = l.size < width || (l.size == width && width < 16);
  while (two ? 2 * l.channels < l.size : l.channels < width) l.channels *= 2;
  l.inputs = width / l.channels;
  l.vectors = (l.size + l.channels - 1) / l.channels;
  return l;
}

// Vectors of a group that are computed together, where `left` are left.
[[gnu::always_inline]] constexpr int vectors_at_once(int left, int width) {
  return left >= 4 && width == 16 ? 4 : left >= 2 ? 2 : 1;
}

// What packed weights begin with. In floats.
struct PackedGroups {
  // For each group int32: the number of steps in a row of the kernel, and where each one's inputs are, from the row's
  // first pixel. A step is a unit of a tap.
  std::int64_t offsets, next_offsets;
  // For each group [vectors at once][kernel row][step][vector][lane: channel, input].
  std::int64_t weights, next_weights;
};

template <int kWidth>
std::int64_t group_packed_size(const ConvShape& shape, int decisions);
template <int kWidth>
void group_pack(const ConvShape& shape, int decisions, const float* weight, float* packed);

}  // namespace headgate
