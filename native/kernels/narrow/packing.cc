#include "kernels/narrow/packing.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <utility>

namespace headgate {
namespace {

// Outputs of the block, the inputs that any of them reads, by their positions in a pixel, ascending; and whether all
// others are read by the base path for the same outputs.
struct Reads {
  int first_output, outputs;
  std::vector<std::int32_t> positions;
  bool whole_pixels;
};

// Adjacent elements of a kernel row, [begin, end).
struct Stretch {
  std::int64_t begin, end;
};

// The elements of a row of taps that a block may read, whatever they hold.
std::vector<Stretch> stretches_of(const Reads& reads, const NarrowOrder& order, int taps, std::int64_t next_tap) {
  std::vector<Stretch> stretches;
  const auto allow = [&](std::int64_t begin, std::int64_t end) {
    if (stretches.empty() || stretches.back().end != begin) stretches.push_back({begin, begin});
    stretches.back().end = end;
  };
  for (std::int64_t first = 0; first < taps * next_tap; first += next_tap) {
    if (reads.whole_pixels) {
      allow(first, first + order.elements());
      continue;
    }
    for (std::int64_t position : reads.positions) {
      std::int64_t end = position + 1;
      while (end < order.elements() && order.channel_at[end] < 0) ++end;  // padding
      allow(first + position, first + end);
    }
  }
  return stretches;
}

// Elements of a row of taps, as few steps of `size` adjacent elements as hold all that are read; none where a stretch
// is too short for a step.
std::optional<std::vector<std::int64_t>> steps_of(const std::vector<std::int32_t>& positions, int taps,
                                                  std::int64_t next_tap, int size,
                                                  const std::vector<Stretch>& stretches) {
  std::vector<std::int64_t> steps;
  std::int64_t end = 0;
  auto stretch = stretches.begin();
  for (int tap = 0; tap < taps; ++tap) {
    for (std::int32_t position : positions) {
      const std::int64_t element = tap * next_tap + position;
      if (element < end) continue;
      while (stretch->end <= element) ++stretch;
      if (stretch->end - stretch->begin < size) return std::nullopt;
      steps.push_back(std::min(element, stretch->end - size));
      end = steps.back() + size;
    }
  }
  return steps;
}

}  // namespace

NarrowTensor int8_weights(const float* weight, int outputs, std::int64_t per_output) {
  NarrowTensor tensor;
  tensor.values.reserve(outputs * per_output);
  for (int o = 0; o < outputs; ++o, weight += per_output) {
    float largest = 0;
    for (std::int64_t i = 0; i < per_output; ++i) largest = std::max(largest, std::abs(weight[i]));
    const double scale = largest == 0 ? 1.0 : double{largest} / 127;
    tensor.scale.push_back(scale);
    for (std::int64_t i = 0; i < per_output; ++i) {
      tensor.values.push_back(static_cast<std::int16_t>(std::nearbyint(weight[i] / scale)));
    }
  }
  return tensor;
}

NarrowTensor bfloat16_weights(const float* weight, int outputs, std::int64_t per_output) {
  NarrowTensor tensor{{}, std::vector<double>(outputs, 1.0)};
  tensor.values.reserve(outputs * per_output);
  for (std::int64_t i = 0; i < outputs * per_output; ++i) {  // all are finite
    const auto bits = std::bit_cast<std::uint32_t>(weight[i]);
    tensor.values.push_back(static_cast<std::int16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
  }
  return tensor;
}

NarrowOrder narrow_order(const ConvShape& shape, bool rest, NarrowFormat format) {
  const int unit = format.integral() ? 1 : format.elements();
  NarrowOrder order{{}, std::vector<std::int32_t>(shape.in_channels, -1), true};
  const auto append = [&](std::int32_t channel) {
    order.position_of[channel] = static_cast<std::int32_t>(order.channel_at.size());
    order.channel_at.push_back(channel);
  };
  const auto fill_lane = [&] {
    while (order.elements() % unit != 0) order.channel_at.push_back(-1);
  };
  std::vector<char> listed(shape.in_channels);
  const bool twice = std::any_of(shape.inputs.begin(), shape.inputs.end(),
                                 [&](std::int32_t channel) { return std::exchange(listed[channel], 1) != 0; });
  for (std::size_t i = 0; !twice && i < shape.inputs.size(); ++i) {
    append(shape.inputs[i]);
    if ((i + 1) % shape.inputs_per_block == 0) fill_lane();
  }
  for (std::int32_t channel = 0; (rest || twice) && channel < shape.in_channels; ++channel) {
    if (order.position_of[channel] >= 0) continue;
    append(channel);
    if (twice) fill_lane();
  }
  order.channel_at.resize(padded_channels(static_cast<int>(order.channel_at.size())), -1);
  for (std::int32_t i = 0; i < order.elements(); ++i) {
    order.identity &= order.channel_at[i] == (i < shape.in_channels ? i : -1);
  }
  return order;
}

// Packs one convolution, block by block of equal size, in order.
class NarrowPacker {
 public:
  NarrowPacker(const ConvShape& shape, const NarrowOrder& order, int zero, NarrowFormat format)
      : shape_(shape),
        order_(order),
        format_(format),
        zero_(zero),
        next_tap_(std::int64_t{shape.dilation[1]} * order.elements()) {
    packed_.start_.resize(padded_channels(shape.out_channels));
    packed_.frame_is_zero_ = format.element != NarrowElement::byte || zero == 0;
  }

  // Finds the spread that takes the fewest products.
  void add(Reads reads) {
    NarrowBlock best{};
    std::vector<std::int64_t> offsets;
    std::vector<Stretch> stretches{{0, std::numeric_limits<std::int64_t>::max()}};
    if (!format_.integral()) stretches = stretches_of(reads, order_, shape_.kernel[1], next_tap_);
    for (int spread = 1; spread <= format_.lanes; spread *= 2) {
      const int vectors = (reads.outputs * spread + format_.lanes - 1) / format_.lanes;
      auto steps = steps_of(reads.positions, shape_.kernel[1], next_tap_, spread * format_.elements(), stretches);
      if (!steps) break;
      const std::int64_t products = static_cast<std::int64_t>(steps->size()) * vectors;
      if (spread > 1 && products >= std::int64_t{best.steps} * best.vectors) continue;
      best = {reads.first_output, reads.outputs, spread, vectors, static_cast<int>(steps->size()), 0, false,
              false, 1, 0, 0};
      offsets = std::move(*steps);
    }
    if (format_.tiles && reads.outputs >= kTileRows) add_tiles(reads, stretches, best, offsets);
    best.tap_steps = alike_steps(offsets);
    best.shared = !best.tiled && best.tap_steps > 0 && shape_.kernel[1] == 3 && shape_.dilation[1] == 1 &&
                  shape_.stride[1] == 1;
    best.first_offset = static_cast<std::int64_t>(packed_.offsets_.size());
    best.weights = bytes_;
    packed_.offsets_.insert(packed_.offsets_.end(), offsets.begin(), offsets.end());
    packed_.blocks_.push_back(best);
    bytes_ += std::int64_t{best.vectors} * shape_.kernel[0] * best.steps * vector_bytes();
    reads_.push_back(std::move(reads));
  }

  // `value(output, position, row, tap)` is the weight of an input that is read, 0 where this output does not read it.
  template <class Value>
  NarrowWeights pack(Value value) {
    for (std::size_t i = packed_.blocks_.size() - 1; i-- > 0;) {
      NarrowBlock& block = packed_.blocks_[i];
      const NarrowBlock& next = packed_.blocks_[i + 1];
      // Vectors of one block must not write over sums of the next one, which may be there already.
      const bool apart = block.vectors == 1 || block.outputs * block.spread % format_.lanes == 0;
      const bool alike = apart && block.shared == next.shared && block.tiled == next.tiled && block.spread == next.spread &&
                         block.vectors == next.vectors && block.steps == next.steps &&
                         block.tap_steps == next.tap_steps;
      if (alike) block.alike = next.alike + 1;
    }
    packed_.weights_.reset(static_cast<std::byte*>(::operator new(bytes_ + 1, std::align_val_t{64})));
    std::memset(packed_.weights_.get(), 0, bytes_);
    for (std::size_t i = 0; i < reads_.size(); ++i) {
      const NarrowBlock& block = packed_.blocks_[i];
      for (int o = 0; o < block.outputs; ++o) pack_output(block, reads_[i], o, value);
    }
    return std::move(packed_);
  }

 private:
  // Makes the block one for tiles, if its inputs are adjacent enough.
  void add_tiles(const Reads& reads, const std::vector<Stretch>& stretches, NarrowBlock& block,
                 std::vector<std::int64_t>& offsets) const {
    const int step = format_.elements(), tile = kTileRows * step;
    const auto tiles = steps_of(reads.positions, shape_.kernel[1], next_tap_, tile, stretches);
    if (!tiles) return;
    offsets.clear();
    for (std::int64_t first : *tiles) {
      for (int i = 0; i < tile; i += step) offsets.push_back(first + i);
    }
    block.spread = 1, block.vectors = (block.outputs + format_.lanes - 1) / format_.lanes;
    block.steps = static_cast<int>(offsets.size());
    block.tiled = true;
  }

  // Steps of a tap, or 0 where one differs from the next.
  int alike_steps(const std::vector<std::int64_t>& offsets) const {
    const std::size_t steps = offsets.size() / shape_.kernel[1];
    if (steps * shape_.kernel[1] != offsets.size()) return 0;
    for (std::size_t i = steps; i < offsets.size(); ++i) {
      if (offsets[i] != offsets[i - steps] + next_tap_) return 0;
    }
    return static_cast<int>(steps);
  }

  std::int64_t vector_bytes() const { return std::int64_t{format_.lanes} * 4; }

  template <class Value>
  void pack_output(const NarrowBlock& block, const Reads& reads, int o, Value value) {
    const int per_vector = format_.lanes / block.spread, step_elements = block.spread * format_.elements();
    const std::int64_t* offsets = packed_.offsets_.data() + block.first_offset;
    std::byte* to = packed_.weights_.get() + block.weights +
                    std::int64_t{o / per_vector} * shape_.kernel[0] * block.steps * vector_bytes() +
                    std::int64_t{o % per_vector} * block.spread * 4;
    std::int64_t sum = 0;
    for (int row = 0; row < shape_.kernel[0]; ++row, to += block.steps * vector_bytes()) {
      std::int64_t step = 0;
      for (int tap = 0; tap < shape_.kernel[1]; ++tap) {
        for (std::int32_t position : reads.positions) {
          const std::int64_t element = tap * next_tap_ + position;
          while (element >= offsets[step] + step_elements) ++step;
          const std::int16_t weight = value(block.first_output + o, position, row, tap);
          put(to + step * vector_bytes(), element - offsets[step], weight);
          sum += weight;
        }
      }
    }
    if (format_.element == NarrowElement::byte) packed_.start_[block.first_output + o] = static_cast<std::int32_t>(-zero_ * sum);
  }

  void put(std::byte* to, std::int64_t element, std::int16_t weight) const {
    to += element * format_.element_bytes();
    switch (format_.element) {
      case NarrowElement::byte: {
        const auto byte = static_cast<std::int8_t>(weight);
        std::memcpy(to, &byte, sizeof byte);
        break;
      }
      case NarrowElement::word:
      case NarrowElement::bfloat16: std::memcpy(to, &weight, sizeof weight); break;
      case NarrowElement::float32: {
        const std::uint32_t bits = std::uint32_t{static_cast<std::uint16_t>(weight)} << 16;
        std::memcpy(to, &bits, sizeof bits);
        break;
      }
    }
  }

  const ConvShape& shape_;
  const NarrowOrder& order_;
  const NarrowFormat format_;
  const int zero_;
  const std::int64_t next_tap_;  // elements
  std::vector<Reads> reads_;     // of every block
  std::int64_t bytes_ = 0;
  NarrowWeights packed_;
};

NarrowWeights pack_narrow(const ConvShape& shape, const std::int16_t* weight, const NarrowOrder& order, int zero,
                          NarrowFormat format) {
  NarrowPacker packer(shape, order, zero, format);
  const int outputs = shape.out_channels / shape.blocks, inputs = shape.inputs_per_block;
  // Of every block: its inputs by position, and their places in the weight.
  std::vector<std::vector<std::int32_t>> inputs_at(shape.blocks);
  std::vector<std::int32_t> place(order.elements());
  for (int b = 0; b < shape.blocks; ++b) {
    std::vector<std::int32_t> positions;
    for (int i = 0; i < inputs; ++i) {
      positions.push_back(order.position_of[shape.inputs[std::int64_t{b} * inputs + i]]);
    }
    std::vector<std::int32_t>& of_block = inputs_at[b];
    of_block.resize(inputs);
    std::iota(of_block.begin(), of_block.end(), 0);
    std::sort(of_block.begin(), of_block.end(), [&](int i, int j) { return positions[i] < positions[j]; });
    std::sort(positions.begin(), positions.end());
    packer.add({b * outputs, outputs, std::move(positions), false});
  }
  int block = -1;
  return packer.pack([&](int o, std::int32_t position, int row, int tap) {
    if (o / outputs != block) {
      block = o / outputs;
      for (std::int32_t i : inputs_at[block]) {
        place[order.position_of[shape.inputs[std::int64_t{block} * inputs + i]]] = i;
      }
    }
    return weight[((std::int64_t{o} * inputs + place[position]) * shape.kernel[0] + row) * shape.kernel[1] + tap];
  });
}

NarrowWeights pack_narrow_rest(const ConvShape& shape, const std::int16_t* weight, int decisions,
                               const NarrowOrder& order, int zero, NarrowFormat format) {
  NarrowPacker packer(shape, order, zero, format);
  const int outputs = shape.out_channels / decisions, per_block = shape.out_channels / shape.blocks;
  std::vector<int> base_reads(shape.in_channels);  // by how many of the base blocks that a decision's outputs lie in
  for (int d = 0; d < decisions; ++d) {
    const int first = d * outputs / per_block, last = ((d + 1) * outputs - 1) / per_block;
    std::fill(base_reads.begin(), base_reads.end(), 0);
    for (std::int64_t i = std::int64_t{first} * shape.inputs_per_block;
         i < std::int64_t{last + 1} * shape.inputs_per_block; ++i) {
      ++base_reads[shape.inputs[i]];
    }
    std::vector<std::int32_t> positions;
    for (std::int32_t position = 0; position < order.elements(); ++position) {
      const std::int32_t channel = order.channel_at[position];
      if (channel >= 0 && base_reads[channel] <= last - first) positions.push_back(position);
    }
    packer.add({d * outputs, outputs, std::move(positions), true});
  }
  std::vector<char> in_base(shape.in_channels);
  int block = -1;
  return packer.pack([&](int o, std::int32_t position, int row, int tap) {
    if (o / per_block != block) {
      block = o / per_block;
      std::fill(in_base.begin(), in_base.end(), 0);
      for (int i = 0; i < shape.inputs_per_block; ++i) {
        in_base[shape.inputs[std::int64_t{block} * shape.inputs_per_block + i]] = 1;
      }
    }
    const std::int32_t channel = order.channel_at[position];
    if (in_base[channel]) return std::int16_t{0};
    return weight[((std::int64_t{o} * shape.in_channels + channel) * shape.kernel[0] + row) * shape.kernel[1] + tap];
  });
}

}  // namespace headgate
