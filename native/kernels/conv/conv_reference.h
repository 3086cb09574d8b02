// The convolution by its definition, in float64: what the kernels are tested against.
#pragma once

#include <vector>

#include "kernels/conv/conv.h"

namespace headgate {

// (images · output pixels, out channels): Σ x · w, and Σ |x| · |w|, which bounds the rounding errors of the former.
struct ConvSums {
  std::vector<double> sum, magnitude;
};

// `weight` is torch's [out, inputs_per_block, kh, kw].
ConvSums conv_reference(const ConvShape& shape, const float* weight, const Map& input, int images, int output_height,
                        int output_width);

}  // namespace headgate
