// Rounding and convolution by their definitions, in float64: what the narrow kernels are tested against.
#pragma once

#include <functional>
#include <vector>

#include "kernels/conv/conv.h"

namespace headgate {

// The nearest bfloat16, halves to even; infinite beyond the largest one.
double bfloat16_reference(double x);

// Every channel of every pixel, rounded, (images, height, width, channels): bfloat16, or the integers q − zero by the
// rule of narrow.h.
std::vector<double> bfloat16_reference(const Map& input, int images);
std::vector<double> int8_reference(const Map& input, int images, float inverse_scale, int zero);

// (images · output pixels, out channels): Σ w · x over the inputs that `reads(output, input)` admits, and Σ |w · x|.
// Sums of integers are exact. `weight` is [out, in, kh, kw].
struct ReferenceSums {
  std::vector<double> sums, magnitudes;
};
ReferenceSums convolution_reference(const ConvShape& shape, const std::vector<double>& weight,
                                    const std::vector<double>& rounded, int images, int height, int width,
                                    int output_height, int output_width, const std::function<bool(int, int)>& reads);

}  // namespace headgate
