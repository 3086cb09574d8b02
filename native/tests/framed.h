// Maps with their memory, for tests and timing of kernels.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "kernels/map.h"

namespace headgate {

// What is not written must not be read, nor come out: a NaN that no arithmetic makes.
inline float poison() {
  const std::uint32_t bits = 0x7fc0dead;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline bool same_bits(float a, float b) { return std::memcmp(&a, &b, sizeof a) == 0; }
inline bool poisoned(float value) { return same_bits(value, poison()); }

// Floats on a cache line's boundary.
class Aligned {
 public:
  Aligned(std::size_t size, float value) : storage_(size + 16, value) {
    offset_ = (64 - reinterpret_cast<std::uintptr_t>(storage_.data()) % 64) % 64 / sizeof(float);
  }
  Aligned(const Aligned&) = delete;
  Aligned& operator=(const Aligned&) = delete;
  float* data() { return storage_.data() + offset_; }

 private:
  std::vector<float> storage_;
  std::size_t offset_;
};

inline float* pixel_at(const Map& map, int image, int y, int x) {
  return map.data + image * map.image_stride + y * map.row_stride + x * map.pixel_stride();
}

class Framed {
 public:
  Framed(int images, int channels, int height, int width, int border, float value)
      : images_(images), pixel_(padded_channels(channels)), row_((width + 2 * border) * std::int64_t{pixel_}),
        size_((height + 2 * border) * row_ * images), memory_(size_, value) {
    map_ = {memory_.data() + border * (row_ + pixel_), (height + 2 * border) * row_, row_, channels, height, width,
            border};
  }

  const Map& map() const { return map_; }
  float* begin() { return memory_.data(); }
  std::int64_t size() const { return size_; }
  float* at(int image, int y, int x) { return pixel_at(map_, image, y, x); }

  // Normal numbers in the channels; the frame and the padding stay.
  template <class Random>
  void fill(Random& random) {
    std::normal_distribution<float> normal;
    for (int image = 0; image < images_; ++image) {
      for (int y = 0; y < map_.height; ++y) {
        for (int x = 0; x < map_.width; ++x) {
          for (int c = 0; c < map_.channels; ++c) at(image, y, x)[c] = normal(random);
        }
      }
    }
  }

 private:
  int images_, pixel_;
  std::int64_t row_, size_;
  Aligned memory_;
  Map map_;
};

}  // namespace headgate
