// Problems for tests of the convolution kernels.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/conv/conv_reference.h"
#include "tests/framed.h"

namespace headgate {

enum class Lists { contiguous, shuffled, any };

inline ConvShape shape_of(int in, int out, int blocks, Lists lists, int kh = 3, int kw = 3, int sh = 1, int sw = 1,
                          int ph = 1, int pw = 1, int dh = 1, int dw = 1) {
  ConvShape shape{in, out, {kh, kw}, {sh, sw}, {ph, pw}, {dh, dw}, blocks, in / blocks, {}};
  std::mt19937 random(in * 31 + out);
  for (int block = 0; block < blocks; ++block) {
    for (int i = 0; i < shape.inputs_per_block; ++i) {
      shape.inputs.push_back(lists == Lists::contiguous ? block * shape.inputs_per_block + i
                             : lists == Lists::shuffled ? i * blocks + block
                                                        : static_cast<int>(random() % in));
    }
  }
  return shape;
}

// One convolution with all that it reads, and the sums that it should find.
struct Problem {
  ConvShape shape;
  int images, height, width, words;
  std::vector<float> weight;
  Framed input, residual;
  std::vector<float> constants[6];  // scale, bias, score scale, score bias, threshold, gain
  ConvSums sums;

  static int out_size(const ConvShape& s, int axis, int size) {
    return (size + 2 * s.padding[axis] - s.dilation[axis] * (s.kernel[axis] - 1) - 1) / s.stride[axis] + 1;
  }

  Problem(const ConvShape& s, int images_, int in_height, int in_width, unsigned seed = 1)
      : shape(s), images(images_), height(out_size(s, 0, in_height)), width(out_size(s, 1, in_width)),
        words(padded_channels(s.out_channels) / kLanes),
        weight(static_cast<std::size_t>(s.out_channels) * s.inputs_per_block * s.kernel[0] * s.kernel[1]),
        input(images_, s.in_channels, in_height, in_width, std::max(s.padding[0], s.padding[1]) + seed % 2, 0.0f),
        residual(images_, s.out_channels, height, width, seed % 3, 0.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& w : weight) w = normal(random);
    input.fill(random);
    residual.fill(random);
    const float spread = std::sqrt(static_cast<float>(s.inputs_per_block * s.kernel[0] * s.kernel[1]));
    for (auto& values : constants) {
      values.assign(padded_channels(s.out_channels), 0.0f);
      for (int c = 0; c < s.out_channels; ++c) values[c] = normal(random);
    }
    for (int c = 0; c < s.out_channels; ++c) constants[2][c] = (1 + std::abs(constants[2][c])) / spread;
    sums = conv_reference(shape, weight.data(), input.map(), images, height, width);
  }

  std::int64_t pixels() const { return std::int64_t{images} * height * width; }
  int macs() const { return shape.inputs_per_block * shape.kernel[0] * shape.kernel[1]; }

  ConvEpilogue epilogue(Epilogue kind, bool with_residual, bool two_sided = false) const {
    ConvEpilogue e{};
    e.kind = kind, e.scale = constants[0].data(), e.bias = constants[1].data(), e.low = -0.5f, e.high = 2.0f;
    e.residual = with_residual ? &residual.map() : nullptr;
    if (kind == Epilogue::gate) {
      e.score_scale = constants[2].data(), e.score_bias = constants[3].data(), e.threshold = constants[4].data();
      e.two_sided = two_sided, e.center = 0.75f, e.group_size = 1;
    }
    return e;
  }
  // Decisions for groups, no larger than `most`, a power of two.
  ConvEpilogue groups(int most, bool with_residual, bool two_sided) const {
    ConvEpilogue e = epilogue(Epilogue::gate, with_residual, two_sided);
    e.group_size = std::gcd(most, shape.out_channels), e.gain = constants[5].data();
    return e;
  }
};

}  // namespace headgate
