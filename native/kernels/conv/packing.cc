#include "kernels/conv/packing.h"

#include <algorithm>
#include <cstring>

namespace headgate {
namespace {

int outputs_per_block(const ConvShape& shape) { return shape.out_channels / shape.blocks; }

// Lanes beyond the channels take the last block's inputs; whatever comes out of them is dropped.
int block_of(const ConvShape& shape, int lane) {
  return std::min(lane, shape.out_channels - 1) / outputs_per_block(shape);
}

int channel_of(const ConvShape& shape, int block, int input) {
  return shape.inputs[static_cast<std::size_t>(block) * shape.inputs_per_block + input];
}

// The first channel of the window that holds the inputs of lanes [lane, lane + width), or −1 where there is none.
// Aligned where that is possible: a load across two cache lines costs two.
int window_start(const ConvShape& shape, int lane, int width, int input) {
  int low = padded_channels(shape.in_channels), high = 0;
  for (int block = block_of(shape, lane); block <= block_of(shape, lane + width - 1); ++block) {
    low = std::min(low, channel_of(shape, block, input));
    high = std::max(high, channel_of(shape, block, input));
  }
  const int aligned = low / width * width;
  if (high < aligned + width) return aligned;
  return high < low + width ? std::min(low, padded_channels(shape.in_channels) - width) : -1;
}

bool windows_everywhere(const ConvShape& shape, int width) {
  for (int lane = 0; lane < padded_channels(shape.out_channels); lane += width) {
    for (int input = 0; input < shape.inputs_per_block; ++input) {
      if (window_start(shape, lane, width, input) < 0) return false;
    }
  }
  return true;
}

ConvLayout layout_of(const ConvShape& shape, int width) {
  ConvLayout layout{};
  const int outputs = outputs_per_block(shape), vectors = padded_channels(shape.out_channels) / width;
  const bool alone = shape.blocks == 1 || outputs % width == 0;
  layout.lanes = alone                               ? LaneInputs::one
                 : windows_everywhere(shape, width) ? LaneInputs::window
                                                     : LaneInputs::spread;
  layout.run = shape.blocks == 1 ? vectors : alone ? outputs / width : 1;
  layout.shared = layout.lanes != LaneInputs::spread && layout.run == 1 && shape.kernel[1] == 3 &&
                  shape.stride[1] == 1 && shape.dilation[1] == 1;
  layout.steps = shape.kernel[1] * shape.inputs_per_block;
  layout.panel = static_cast<std::int64_t>(shape.kernel[0]) * layout.steps * kLanes;
  layout.weights = kLanes;
  layout.offsets = layout.weights + padded_channels(shape.out_channels) / kLanes * layout.panel;
  const std::int64_t lists = layout.lanes == LaneInputs::window ? vectors : shape.blocks;
  layout.lane_of = layout.offsets + (lists * layout.steps + kLanes - 1) / kLanes * kLanes;
  return layout;
}

std::int64_t packed_floats(const ConvShape& shape, const ConvLayout& layout) {
  const std::int64_t lanes = padded_channels(shape.out_channels);
  return layout.lane_of + (layout.lanes == LaneInputs::window ? lanes * layout.steps : 0);
}

int step_of(const ConvShape& shape, const ConvLayout& layout, int tap, int input) {
  return layout.shared ? input * shape.kernel[1] + tap : tap * shape.inputs_per_block + input;
}

// All but the weights.
void put_head(const ConvShape& shape, const ConvLayout& layout, int width, float* packed) {
  std::fill_n(packed, layout.weights, 0.0f);
  std::fill(packed + layout.offsets, packed + packed_floats(shape, layout), 0.0f);
  std::memcpy(packed, &layout, sizeof layout);

  const int inputs = shape.inputs_per_block, taps = shape.kernel[1];
  const std::int64_t next_tap = static_cast<std::int64_t>(shape.dilation[1]) * padded_channels(shape.in_channels);
  const auto put = [&](std::int64_t position, std::int64_t value) {
    const std::int32_t narrow = static_cast<std::int32_t>(value);
    std::memcpy(packed + position, &narrow, sizeof narrow);
  };

  const bool window = layout.lanes == LaneInputs::window;
  const int lists = window ? padded_channels(shape.out_channels) / width : shape.blocks;
  for (int list = 0; list < lists; ++list) {
    for (int input = 0; input < inputs; ++input) {
      const int first =
          window ? window_start(shape, list * width, width, input) : channel_of(shape, list, input);
      for (int tap = 0; tap < taps; ++tap) {
        const std::int64_t at = static_cast<std::int64_t>(list) * layout.steps + step_of(shape, layout, tap, input);
        put(layout.offsets + at, tap * next_tap + first);
        for (int lane = 0; window && lane < width; ++lane) {
          put(layout.lane_of + at * width + lane,
              channel_of(shape, block_of(shape, list * width + lane), input) - first);
        }
      }
    }
  }
}

}  // namespace

template <int kWidth>
std::int64_t conv_packed_size(const ConvShape& shape) {
  return packed_floats(shape, layout_of(shape, kWidth));
}

template <int kWidth>
void conv_pack(const ConvShape& shape, const float* weight, float* packed) {
  conv_pack_outputs<kWidth>(shape, weight, packed, 0, shape.out_channels);
}

template <int kWidth>
void conv_pack_outputs(const ConvShape& shape, const float* weight, float* packed, int first, int last) {
  const ConvLayout layout = layout_of(shape, kWidth);
  if (first == 0) put_head(shape, layout, kWidth, packed);
  const int inputs = shape.inputs_per_block, rows = shape.kernel[0], taps = shape.kernel[1];
  weight += std::int64_t{first} * inputs * rows * taps;
  float* const panels = packed + layout.weights;
  std::fill(panels + first / kLanes * layout.panel, panels + (last + kLanes - 1) / kLanes * layout.panel, 0.0f);
  for (int o = first; o < last; ++o) {
    float* panel = panels + o / kLanes * layout.panel + o % kLanes;
    for (int input = 0; input < inputs; ++input) {
      for (int row = 0; row < rows; ++row) {
        for (int tap = 0; tap < taps; ++tap) {
          const std::int64_t step = static_cast<std::int64_t>(row) * layout.steps + step_of(shape, layout, tap, input);
          panel[step * kLanes] = *weight++;
        }
      }
    }
  }
}

template std::int64_t conv_packed_size<4>(const ConvShape&);
template std::int64_t conv_packed_size<8>(const ConvShape&);
template std::int64_t conv_packed_size<16>(const ConvShape&);
template void conv_pack<4>(const ConvShape&, const float*, float*);
template void conv_pack_outputs<4>(const ConvShape&, const float*, float*, int, int);
template void conv_pack<8>(const ConvShape&, const float*, float*);
template void conv_pack_outputs<8>(const ConvShape&, const float*, float*, int, int);
template void conv_pack<16>(const ConvShape&, const float*, float*);
template void conv_pack_outputs<16>(const ConvShape&, const float*, float*, int, int);

}  // namespace headgate
