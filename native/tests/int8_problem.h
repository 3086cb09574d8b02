// An integer convolution with all that it reads, and how the kernels run it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "engine/kernel_set.h"
#include "kernels/int8_conv/int8_reference.h"
#include "kernels/int8_conv/packing.h"
#include "tests/framed.h"

namespace headgate {

// 64-byte aligned bytes that hold no useful values.
class Bytes {
 public:
  explicit Bytes(std::int64_t size) : memory_((size + 3) / 4, poison()) {}
  std::byte* data() { return reinterpret_cast<std::byte*>(memory_.data()); }

 private:
  Aligned memory_;
};

struct Int8Problem {
  ConvShape shape;
  int images, height, width, out_height, out_width, decisions, zero;
  float inverse_scale;
  std::vector<std::int8_t> weight;  // [out, in, kh, kw]
  Framed input, residual;
  std::vector<float> constants[8];  // scale, bias, score scale, score bias, threshold, gain, final scale, final bias
  std::vector<int> quantised;

  static int out_size(const ConvShape& s, int axis, int size) {
    return (size + 2 * s.padding[axis] - s.dilation[axis] * (s.kernel[axis] - 1) - 1) / s.stride[axis] + 1;
  }

  Int8Problem(const ConvShape& s, int images_, int height_, int width_, int decisions_, int zero_ = 0)
      : shape(s), images(images_), height(height_), width(width_), out_height(out_size(s, 0, height_)),
        out_width(out_size(s, 1, width_)), decisions(decisions_), zero(zero_), inverse_scale(40.0f),
        weight(std::size_t{1} * s.out_channels * s.in_channels * s.kernel[0] * s.kernel[1]),
        input(images_, s.in_channels, height_, width_, 1, 0.0f),
        residual(images_, s.out_channels, out_height, out_width, 0, 0.0f) {
    std::mt19937 random(s.in_channels * 31 + s.out_channels + zero_);
    std::normal_distribution<float> normal;
    for (std::int8_t& w : weight) w = static_cast<std::int8_t>(static_cast<int>(random() % 255) - 127);
    input.fill(random);
    residual.fill(random);
    const float spread = 60 * 40 * std::sqrt(static_cast<float>(weight.size() / s.out_channels));
    for (int i = 0; i < 8; ++i) {
      constants[i].assign(padded_channels(s.out_channels), 0.0f);
      for (int c = 0; c < s.out_channels; ++c) {
        const int first = i == 4 || i == 5 ? c / (s.out_channels / decisions) * (s.out_channels / decisions) : c;
        constants[i][c] = c == first ? normal(random) : constants[i][first];
        if (i == 0 || i == 2 || i == 6) constants[i][c] *= 4 / spread;
      }
    }
    quantised = quantise_reference(input.map(), images, inverse_scale, zero);
  }

  int words() const { return padded_channels(shape.out_channels) / kLanes; }
  // Of a pixel of the output: image, y, x.
  std::array<int, 3> place(std::int64_t pixel) const {
    return {static_cast<int>(pixel / (out_height * out_width)), static_cast<int>(pixel / out_width % out_height),
            static_cast<int>(pixel % out_width)};
  }
  std::int64_t pixels() const { return std::int64_t{images} * out_height * out_width; }
  int block_of(int output) const { return output / (shape.out_channels / shape.blocks); }
  bool in_base(int output, int channel) const {
    const auto list = shape.inputs.begin() + block_of(output) * shape.inputs_per_block;
    return std::find(list, list + shape.inputs_per_block, channel) != list + shape.inputs_per_block;
  }

  std::vector<std::int8_t> base_weight() const {
    const int taps = shape.kernel[0] * shape.kernel[1];
    std::vector<std::int8_t> picked;
    for (int o = 0; o < shape.out_channels; ++o) {
      for (int i = 0; i < shape.inputs_per_block; ++i) {
        const int channel = shape.inputs[block_of(o) * shape.inputs_per_block + i];
        const auto from = weight.begin() + (std::int64_t{o} * shape.in_channels + channel) * taps;
        picked.insert(picked.end(), from, from + taps);
      }
    }
    return picked;
  }

  std::vector<std::int64_t> sums(bool base) const {
    return int8_reference(shape, weight, quantised, images, height, width, out_height, out_width,
                          [&](int o, int i) { return in_base(o, i) == base; });
  }

  Int8Ending ending(Int8Epilogue kind, bool with_residual, bool two_sided, std::uint16_t* masks) const {
    Int8Ending e{kind, {}, constants[5].data(), shape.out_channels / decisions};
    e.common.scale = constants[0].data(), e.common.bias = constants[1].data();
    e.common.score_scale = constants[2].data(), e.common.score_bias = constants[3].data();
    e.common.threshold = constants[4].data();
    e.common.two_sided = two_sided, e.common.center = 0.75f, e.common.low = -0.5f, e.common.high = 2.0f;
    e.common.residual = with_residual ? &residual.map() : nullptr;
    e.common.masks = masks;
    return e;
  }
};

// The input as the kernels of an instruction set see it: rows that the output rows [first_row, last_row) of some images
// read.
struct Int8Input {
  Int8Map map;
  Bytes memory;

  Int8Input(const Int8Kernels& kernels, const Int8Problem& p, const Int8Order& order, int first_image, int last_image,
            int first_row, int last_row)
      : map(geometry(p, order, first_image, last_image, first_row, last_row)),
        memory(map.image_stride * (last_image - first_image) * kernels.quantise.format.element_bytes() + kInt8Slack) {
    map.data = memory.data();
    const std::int32_t* channel_at = order.identity ? nullptr : order.channel_at.data();
    kernels.quantise.run({p.input.map(), map, channel_at, p.inverse_scale, p.zero});
  }

  static Int8Map geometry(const Int8Problem& p, const Int8Order& order, int first_image, int last_image, int first_row,
                          int last_row) {
    const ConvShape& s = p.shape;
    Int8Map map{};
    map.first_image = first_image, map.last_image = last_image;
    map.first_row = first_row * s.stride[0] - s.padding[0];
    map.last_row = (last_row - 1) * s.stride[0] - s.padding[0] + s.dilation[0] * (s.kernel[0] - 1) + 1;
    map.border = s.padding[1];
    map.pixel_stride = order.elements();
    map.row_stride = (p.width + 2 * map.border) * map.pixel_stride;
    map.image_stride = (map.last_row - map.first_row) * map.row_stride;
    return map;
  }
};

}  // namespace headgate
