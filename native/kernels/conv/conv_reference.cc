#include "kernels/conv/conv_reference.h"

#include <cmath>

namespace headgate {

ConvSums conv_reference(const ConvShape& shape, const float* weight, const Map& input, int images, int output_height,
                        int output_width) {
  ConvSums result;
  const int outputs_per_block = shape.out_channels / shape.blocks;
  for (int image = 0; image < images; ++image) {
    for (int oy = 0; oy < output_height; ++oy) {
      for (int ox = 0; ox < output_width; ++ox) {
        const float* w = weight;
        for (int o = 0; o < shape.out_channels; ++o) {
          const std::int32_t* inputs = shape.inputs.data() + o / outputs_per_block * shape.inputs_per_block;
          double sum = 0, magnitude = 0;
          for (int i = 0; i < shape.inputs_per_block; ++i) {
            for (int ky = 0; ky < shape.kernel[0]; ++ky) {
              for (int kx = 0; kx < shape.kernel[1]; ++kx, ++w) {
                const int y = oy * shape.stride[0] - shape.padding[0] + ky * shape.dilation[0];
                const int x = ox * shape.stride[1] - shape.padding[1] + kx * shape.dilation[1];
                if (y < 0 || y >= input.height || x < 0 || x >= input.width) continue;
                const double product = double{*w} * input.data[image * input.image_stride + y * input.row_stride +
                                                               x * input.pixel_stride() + inputs[i]];
                sum += product;
                magnitude += std::abs(product);
              }
            }
          }
          result.sum.push_back(sum);
          result.magnitude.push_back(magnitude);
        }
      }
    }
  }
  return result;
}

}  // namespace headgate
