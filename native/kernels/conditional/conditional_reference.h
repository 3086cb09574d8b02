// The conditional path's sums by their definition, in float64: what the kernels are tested against.
#pragma once

#include <vector>

#include "kernels/conditional/conditional.h"

namespace headgate {

// (images · output pixels, out channels): Σ x · w over the inputs outside the base block, and Σ |x| · |w|, which bounds
// the rounding errors of the former.
struct RestSums {
  std::vector<double> sum, magnitude;
};

// `weight` is torch's full [out, in, kh, kw].
RestSums conditional_reference(const ConvShape& shape, const float* weight, const Map& input, int images,
                               int output_height, int output_width);

}  // namespace headgate
