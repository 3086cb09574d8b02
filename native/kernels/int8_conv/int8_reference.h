// Integer convolution by its definition: what the kernels are tested against, bit for bit.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "kernels/conv/conv.h"

namespace headgate {

// q − zero of every channel of every pixel, (images, height, width, channels), by the rule of quantise.h.
std::vector<int> quantise_reference(const Map& input, int images, float inverse_scale, int zero);

// (images · output pixels, out channels): Σ w · (q − zero) over the inputs that `reads(output, input)` admits.
// `weight` is [out, in, kh, kw].
std::vector<std::int64_t> int8_reference(const ConvShape& shape, const std::vector<std::int8_t>& weight,
                                         const std::vector<int>& quantised, int images, int height, int width,
                                         int output_height, int output_width,
                                         const std::function<bool(int, int)>& reads);

}  // namespace headgate
