#include "engine/frames.h"

#include <algorithm>
#include <cstring>

namespace headgate {

void clear_frame(const Map& map, std::int64_t image) {
  if (map.border == 0) return;
  float* first = map.data + image * map.image_stride - map.border * (map.row_stride + map.pixel_stride());
  const std::int64_t side = map.border * map.pixel_stride(), rows = map.border * map.row_stride;
  const std::int64_t inner = map.width * map.pixel_stride();
  std::fill_n(first, rows, 0.0f);
  for (int y = 0; y < map.height; ++y) {
    float* row = first + rows + y * map.row_stride;
    std::fill_n(row, side, 0.0f);
    std::fill_n(row + side + inner, side, 0.0f);
  }
  std::fill_n(first + rows + map.height * map.row_stride, rows, 0.0f);
}

void fill_frames(const NarrowMap& map, int element_bytes, int zero_byte) {
  const std::int64_t row = map.row_stride * element_bytes, side = map.border * map.pixel_stride * element_bytes;
  std::byte* to = map.data;
  for (std::int64_t image = map.first_image; image < map.last_image; ++image) {
    for (int y = map.first_row; y < map.last_row; ++y, to += row) {
      if (y < 0 || y >= map.height) {
        std::memset(to, zero_byte, row);
      } else {
        std::memset(to, zero_byte, side);
        std::memset(to + row - side, zero_byte, side);
      }
    }
  }
}

}  // namespace headgate
