#include "kernels/narrow/narrow_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace headgate {
namespace {

template <class Round>
std::vector<double> each(const Map& input, int images, Round round) {
  std::vector<double> rounded;
  for (int image = 0; image < images; ++image) {
    for (int y = 0; y < input.height; ++y) {
      for (int x = 0; x < input.width; ++x) {
        const float* pixel =
            input.data + image * input.image_stride + y * input.row_stride + x * input.pixel_stride();
        for (int c = 0; c < input.channels; ++c) rounded.push_back(round(pixel[c]));
      }
    }
  }
  return rounded;
}

}  // namespace

double bfloat16_reference(double x) {
  if (!std::isfinite(x)) return x;
  int exponent = 0;
  std::frexp(x, &exponent);
  const int last = std::max(exponent, -125) - 8;  // the exponent of the last of 8 bits
  const double rounded = std::ldexp(std::nearbyint(std::ldexp(x, -last)), last);
  return std::abs(rounded) < std::ldexp(1, 128) ? rounded
                                                : std::copysign(std::numeric_limits<double>::infinity(), x);
}

std::vector<double> bfloat16_reference(const Map& input, int images) {
  return each(input, images, [](float x) { return bfloat16_reference(x); });
}

std::vector<double> int8_reference(const Map& input, int images, float inverse_scale, int zero) {
  const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
  return each(input, images, [=](float x) {
    const float scaled = x * inverse_scale;
    return std::nearbyint(std::isnan(scaled) ? low : std::clamp(scaled, low, high));
  });
}

ReferenceSums convolution_reference(const ConvShape& shape, const std::vector<double>& weight,
                                    const std::vector<double>& rounded, int images, int height, int width,
                                    int output_height, int output_width, const std::function<bool(int, int)>& reads) {
  ReferenceSums result;
  for (int image = 0; image < images; ++image) {
    for (int oy = 0; oy < output_height; ++oy) {
      for (int ox = 0; ox < output_width; ++ox) {
        const double* w = weight.data();
        for (int o = 0; o < shape.out_channels; ++o) {
          double sum = 0, magnitude = 0;
          for (int i = 0; i < shape.in_channels; ++i) {
            const bool read = reads(o, i);
            for (int ky = 0; ky < shape.kernel[0]; ++ky) {
              for (int kx = 0; kx < shape.kernel[1]; ++kx, ++w) {
                const int y = oy * shape.stride[0] - shape.padding[0] + ky * shape.dilation[0];
                const int x = ox * shape.stride[1] - shape.padding[1] + kx * shape.dilation[1];
                if (!read || y < 0 || y >= height || x < 0 || x >= width) continue;
                const std::int64_t pixel = (std::int64_t{image} * height + y) * width + x;
                const double product = *w * rounded[pixel * shape.in_channels + i];
                sum += product, magnitude += std::abs(product);
              }
            }
          }
          result.sums.push_back(sum), result.magnitudes.push_back(magnitude);
        }
      }
    }
  }
  return result;
}

}  // namespace headgate
