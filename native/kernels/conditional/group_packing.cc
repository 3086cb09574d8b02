#include "kernels/conditional/group_packing.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace headgate {
namespace {

std::int64_t whole_lines(std::int64_t floats) { return (floats + kLanes - 1) / kLanes * kLanes; }

// Which inputs the conditional path of an output reads, and which units that of a group does.
class Inputs {
 public:
  Inputs(const ConvShape& shape, const GroupLayout& layout) : shape_(shape), in_base_(shape.blocks) {
    for (int block = 0; block < shape.blocks; ++block) {
      in_base_[block].assign(shape.in_channels, false);
      const std::int32_t* inputs = shape.inputs.data() + std::int64_t{block} * shape.inputs_per_block;
      for (int i = 0; i < shape.inputs_per_block; ++i) in_base_[block][inputs[i]] = true;
    }
    for (int group = 0; group < layout.groups; ++group) {
      units_.emplace_back();
      for (int input = 0; input < shape.in_channels; input += layout.inputs) {
        if (needed(layout, group, input)) units_.back().push_back(input);
      }
    }
  }

  bool conditional(int output, int input) const {
    return input < shape_.in_channels && !in_base_[std::int64_t{output} * shape_.blocks / shape_.out_channels][input];
  }

  // The first input of each unit.
  const std::vector<std::int32_t>& units(int group) const { return units_[group]; }
  std::int64_t most_units() const {
    std::size_t most = 0;
    for (const auto& units : units_) most = std::max(most, units.size());
    return static_cast<std::int64_t>(most);
  }

 private:
  bool needed(const GroupLayout& layout, int group, int first_input) const {
    for (int c = group * layout.size; c < (group + 1) * layout.size; ++c) {
      for (int i = 0; i < layout.inputs; ++i) {
        if (conditional(c, first_input + i)) return true;
      }
    }
    return false;
  }

  const ConvShape& shape_;
  std::vector<std::vector<bool>> in_base_;          // by block
  std::vector<std::vector<std::int32_t>> units_;  // by group
};

PackedGroups header(const ConvShape& shape, const GroupLayout& layout, const Inputs& inputs) {
  PackedGroups h;
  const std::int64_t steps = shape.kernel[1] * inputs.most_units();
  h.next_offsets = whole_lines(1 + steps);
  h.next_weights = whole_lines(shape.kernel[0] * steps * layout.vectors * layout.channels * layout.inputs);
  h.offsets = whole_lines(sizeof h / sizeof(float));
  h.weights = h.offsets + layout.groups * h.next_offsets;
  return h;
}

}  // namespace

template <int kWidth>
std::int64_t group_packed_size(const ConvShape& shape, int decisions) {
  const GroupLayout layout = group_layout(shape.out_channels, decisions, kWidth);
  const PackedGroups h = header(shape, layout, Inputs(shape, layout));
  return h.weights + layout.groups * h.next_weights;
}

template <int kWidth>
void group_pack(const ConvShape& shape, int decisions, const float* weight, float* packed) {
  const GroupLayout layout = group_layout(shape.out_channels, decisions, kWidth);
  const Inputs inputs(shape, layout);
  const PackedGroups h = header(shape, layout, inputs);
  std::fill_n(packed, h.weights + layout.groups * h.next_weights, 0.0f);
  std::memcpy(packed, &h, sizeof h);

  const int down = shape.kernel[0], across = shape.kernel[1];
  const int next_tap = shape.dilation[1] * padded_channels(shape.in_channels);
  for (int group = 0; group < layout.groups; ++group) {
    std::vector<std::int32_t> offsets{static_cast<std::int32_t>(across * inputs.units(group).size())};
    for (int tap = 0; tap < across; ++tap) {
      for (std::int32_t input : inputs.units(group)) offsets.push_back(tap * next_tap + input);
    }
    std::memcpy(packed + h.offsets + group * h.next_offsets, offsets.data(), offsets.size() * sizeof(std::int32_t));

    float* to = packed + h.weights + group * h.next_weights;
    // A vector's weights for one unit and one tap.
    const auto put = [&](int vector, int input, int tap) {
      const int first = group * layout.size + vector * layout.channels;
      const int last = std::min(first + layout.channels, (group + 1) * layout.size);
      for (int c = first; c < last; ++c) {
        for (int i = input; i < input + layout.inputs; ++i) {
          if (!inputs.conditional(c, i)) continue;
          to[(c - first) * layout.inputs + i - input] =
              weight[(std::int64_t{c} * shape.in_channels + i) * down * across + tap];
        }
      }
      to += kWidth;
    };
    for (int vector = 0, n; vector < layout.vectors; vector += n) {
      n = vectors_at_once(layout.vectors - vector, kWidth);
      for (int tap = 0; tap < down * across; ++tap) {
        for (int input : inputs.units(group)) {
          for (int v = vector; v < vector + n; ++v) put(v, input, tap);
        }
      }
    }
  }
}

template std::int64_t group_packed_size<4>(const ConvShape&, int);
template std::int64_t group_packed_size<8>(const ConvShape&, int);
template std::int64_t group_packed_size<16>(const ConvShape&, int);
template void group_pack<4>(const ConvShape&, int, const float*, float*);
template void group_pack<8>(const ConvShape&, int, const float*, float*);
template void group_pack<16>(const ConvShape&, int, const float*, float*);

}  // namespace headgate
