#include "kernels/int8_conv/int8_reference.h"

#include <algorithm>
#include <cmath>

namespace headgate {

std::vector<int> quantise_reference(const Map& input, int images, float inverse_scale, int zero) {
  std::vector<int> quantised;
  for (int image = 0; image < images; ++image) {
    for (int y = 0; y < input.height; ++y) {
      for (int x = 0; x < input.width; ++x) {
        const float* pixel =
            input.data + image * input.image_stride + y * input.row_stride + x * input.pixel_stride();
        for (int c = 0; c < input.channels; ++c) {
          const float low = static_cast<float>(-zero), high = static_cast<float>(255 - zero);
          const float scaled = pixel[c] * inverse_scale;
          const float clamped = std::isnan(scaled) ? low : std::clamp(scaled, low, high);
          quantised.push_back(static_cast<int>(std::nearbyint(clamped)));
        }
      }
    }
  }
  return quantised;
}

std::vector<std::int64_t> int8_reference(const ConvShape& shape, const std::vector<std::int8_t>& weight,
                                         const std::vector<int>& quantised, int images, int height, int width,
                                         int output_height, int output_width,
                                         const std::function<bool(int, int)>& reads) {
  std::vector<std::int64_t> sums;
  for (int image = 0; image < images; ++image) {
    for (int oy = 0; oy < output_height; ++oy) {
      for (int ox = 0; ox < output_width; ++ox) {
        const std::int8_t* w = weight.data();
        for (int o = 0; o < shape.out_channels; ++o) {
          std::int64_t sum = 0;
          for (int i = 0; i < shape.in_channels; ++i) {
            const bool read = reads(o, i);
            for (int ky = 0; ky < shape.kernel[0]; ++ky) {
              for (int kx = 0; kx < shape.kernel[1]; ++kx, ++w) {
                const int y = oy * shape.stride[0] - shape.padding[0] + ky * shape.dilation[0];
                const int x = ox * shape.stride[1] - shape.padding[1] + kx * shape.dilation[1];
                if (!read || y < 0 || y >= height || x < 0 || x >= width) continue;
                const std::int64_t pixel = (std::int64_t{image} * height + y) * width + x;
                sum += std::int64_t{*w} * quantised[pixel * shape.in_channels + i];
              }
            }
          }
          sums.push_back(sum);
        }
      }
    }
  }
  return sums;
}

}  // namespace headgate
