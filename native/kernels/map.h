// How the engine's kernels see an activation map, and the frame around it.
#pragma once

#include <cstdint>

namespace headgate {

constexpr int kLanes = 16;  // channels of a pixel are padded with zeros to a multiple of this, whatever the vector width

// Always inline, like all that kernels call: a copy compiled for one instruction set must not serve another.
[[gnu::always_inline]] constexpr int padded_channels(int channels) { return (channels + kLanes - 1) / kLanes * kLanes; }

// Channels last, float32. A frame of `border` zero pixels lies around every image's map; `data` points to the first
// image's pixel (0, 0), inside the frame. Strides in elements.
struct Map {
  float* data;
  std::int64_t image_stride, row_stride;
  int channels, height, width, border;

  [[gnu::always_inline]] std::int64_t pixel_stride() const { return padded_channels(channels); }
};

}  // namespace headgate
