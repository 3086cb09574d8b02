#include "kernels/conditional/conditional_reference.h"

#include <algorithm>
#include <cmath>

namespace headgate {
namespace {

bool in_base_block(const ConvShape& shape, int output, int input) {
  const int block = output / (shape.out_channels / shape.blocks);
  const auto first = shape.inputs.begin() + block * shape.inputs_per_block, last = first + shape.inputs_per_block;
  return std::find(first, last, input) != last;
}

}  // namespace

RestSums conditional_reference(const ConvShape& s, const float* weight, const Map& input, int images, int output_height,
                               int output_width) {
  RestSums sums;
  for (int image = 0; image < images; ++image) {
    for (int row = 0; row < output_height; ++row) {
      for (int column = 0; column < output_width; ++column) {
        for (int o = 0; o < s.out_channels; ++o) {
          double sum = 0, magnitude = 0;
          for (int i = 0; i < s.in_channels; ++i) {
            if (in_base_block(s, o, i)) continue;
            for (int ky = 0; ky < s.kernel[0]; ++ky) {
              for (int kx = 0; kx < s.kernel[1]; ++kx) {
                const int y = row * s.stride[0] - s.padding[0] + ky * s.dilation[0];
                const int x = column * s.stride[1] - s.padding[1] + kx * s.dilation[1];
                if (y < 0 || y >= input.height || x < 0 || x >= input.width) continue;
                const double w = weight[((o * s.in_channels + i) * s.kernel[0] + ky) * s.kernel[1] + kx];
                const float* from = input.data + image * input.image_stride + y * input.row_stride;
                const double v = from[x * input.pixel_stride() + i];
                sum += v * w;
                magnitude += std::abs(v * w);
              }
            }
          }
          sums.sum.push_back(sum);
          sums.magnitude.push_back(magnitude);
        }
      }
    }
  }
  return sums;
}

}  // namespace headgate
