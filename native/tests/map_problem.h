// What tests of kernels on whole maps share: inputs whose frames nothing may read, and outputs of which exactly some
// pixels may be written.
#pragma once

#include <cmath>
#include <functional>
#include <string>

#include "tests/framed.h"

namespace headgate {

constexpr double kUnit = 0x1p-24;  // the largest relative error of one rounding

// Random channels, zeros in the padding, poison in the frame.
class InputMap : public Framed {
 public:
  InputMap(int images, int channels, int height, int width, unsigned seed = 1, float spread = 1)
      : Framed(images, channels, height, width, static_cast<int>(seed % 3), poison()), random_(seed) {
    std::normal_distribution<float> normal(0, spread);
    for (int image = 0; image < images; ++image) {
      for (int y = 0; y < height; ++y) {
        for (int x = 0; x < width; ++x) {
          for (int c = 0; c < padded_channels(channels); ++c) at(image, y, x)[c] = c < channels ? normal(random_) : 0.0f;
        }
      }
    }
  }

 private:
  std::mt19937 random_;
};

// What an output must be, and how far it may be from that; NaN means NaN.
struct Expected {
  double value, tolerance;
};
using Reference = std::function<Expected(int image, int y, int x, int c)>;

inline bool as_expected(float value, const Expected& expected) {
  if (std::isnan(expected.value)) return std::isnan(value);
  if (std::isinf(expected.value)) return value == expected.value;
  return std::abs(value - expected.value) <= expected.tolerance;
}

// What is wrong with `output`, poisoned before, or nothing: its pixels for which `written` holds have the reference's
// values and zeros in the padding, all else is untouched.
inline std::string problem_with(Framed& output, int images, const std::function<bool(std::int64_t pixel)>& written,
                                const Reference& reference) {
  const Map& map = output.map();
  std::int64_t touched = 0, pixel = 0;
  for (int image = 0; image < images; ++image) {
    for (int y = 0; y < map.height; ++y) {
      for (int x = 0; x < map.width; ++x, ++pixel) {
        if (!written(pixel)) continue;
        for (int c = 0; c < map.pixel_stride(); ++c, ++touched) {
          const float value = output.at(image, y, x)[c];
          const Expected expected = c < map.channels ? reference(image, y, x, c) : Expected{0, 0};
          if (poisoned(value) || !as_expected(value, expected)) {
            return "image " + std::to_string(image) + " y " + std::to_string(y) + " x " + std::to_string(x) +
                   " channel " + std::to_string(c) + " is " + std::to_string(value) + ", not " +
                   std::to_string(expected.value);
          }
        }
      }
    }
  }
  for (std::int64_t i = 0; i < output.size(); ++i) touched -= !poisoned(output.begin()[i]);
  return touched == 0 ? "" : "memory outside was touched";
}

}  // namespace headgate
