// A convolution of narrow numbers with all that it reads, and how the kernels run it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "engine/kernel_set.h"
#include "kernels/narrow/narrow_reference.h"
#include "kernels/narrow/packing.h"
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

enum class Numbers { int8, bfloat16 };

struct NarrowProblem {
  ConvShape shape;
  int images, height, width, out_height, out_width, decisions, zero;
  Numbers numbers;
  float inverse_scale, low = -0.5f, high = 2.0f;
  std::vector<std::int16_t> weight;      // [out, in, kh, kw], as packers take it
  std::vector<double> reference_weight;  // the same numbers
  Framed input, residual;
  std::vector<float> constants[8];  // scale, bias, score scale, score bias, threshold, gain, final scale, final bias
  std::vector<double> rounded;      // input

  static int out_size(const ConvShape& s, int axis, int size) {
    return (size + 2 * s.padding[axis] - s.dilation[axis] * (s.kernel[axis] - 1) - 1) / s.stride[axis] + 1;
  }

  NarrowProblem(Numbers numbers_, const ConvShape& s, int images_, int height_, int width_, int decisions_,
                int zero_ = 0)
      : shape(s), images(images_), height(height_), width(width_), out_height(out_size(s, 0, height_)),
        out_width(out_size(s, 1, width_)), decisions(decisions_), zero(zero_), numbers(numbers_), inverse_scale(40.0f),
        input(images_, s.in_channels, height_, width_, 1, 0.0f),
        residual(images_, s.out_channels, out_height, out_width, 0, 0.0f) {
    std::mt19937 random(s.in_channels * 31 + s.out_channels + zero_);
    std::normal_distribution<float> normal;
    const std::int64_t per_output = std::int64_t{s.in_channels} * s.kernel[0] * s.kernel[1];
    for (std::int64_t i = 0; i < s.out_channels * per_output; ++i) {
      const float w = numbers == Numbers::int8 ? static_cast<float>(static_cast<int>(random() % 255) - 127)
                                               : normal(random);
      weight.push_back(numbers == Numbers::int8 ? static_cast<std::int16_t>(w)
                                                : bfloat16_weights(&w, 1, 1).values[0]);
      reference_weight.push_back(numbers == Numbers::int8 ? w : bfloat16_reference(w));
    }
    input.fill(random);
    residual.fill(random);
    const float unit = numbers == Numbers::int8 ? 60 * 40 : 1;  // the size of a product
    const float spread = unit * std::sqrt(static_cast<float>(per_output));
    for (int i = 0; i < 8; ++i) {
      constants[i].assign(padded_channels(s.out_channels), 0.0f);
      for (int c = 0; c < s.out_channels; ++c) {
        const int first = i == 4 || i == 5 ? c / (s.out_channels / decisions) * (s.out_channels / decisions) : c;
        constants[i][c] = c == first ? normal(random) : constants[i][first];
        if (i == 0 || i == 2 || i == 6) constants[i][c] *= 4 / spread;
      }
    }
    round_input();
  }

  void round_input() {
    rounded = numbers == Numbers::int8 ? int8_reference(input.map(), images, inverse_scale, zero)
                                       : bfloat16_reference(input.map(), images);
  }

  Rounding rounding() const { return {inverse_scale, zero}; }
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

  std::vector<std::int16_t> base_weight() const {
    const int taps = shape.kernel[0] * shape.kernel[1];
    std::vector<std::int16_t> picked;
    for (int o = 0; o < shape.out_channels; ++o) {
      for (int i = 0; i < shape.inputs_per_block; ++i) {
        const int channel = shape.inputs[block_of(o) * shape.inputs_per_block + i];
        const auto from = weight.begin() + (std::int64_t{o} * shape.in_channels + channel) * taps;
        picked.insert(picked.end(), from, from + taps);
      }
    }
    return picked;
  }

  // Of the base path, or of all that it leaves out.
  ReferenceSums sums(bool base) const {
    return convolution_reference(shape, reference_weight, rounded, images, height, width, out_height, out_width,
                                 [&](int o, int i) { return in_base(o, i) == base; });
  }

  NarrowEnding ending(NarrowEpilogue kind, bool with_residual, bool two_sided, std::uint16_t* masks) const {
    NarrowEnding e{kind, {}, constants[5].data(), shape.out_channels / decisions, nullptr};
    e.common.scale = constants[0].data(), e.common.bias = constants[1].data();
    e.common.score_scale = constants[2].data(), e.common.score_bias = constants[3].data();
    e.common.threshold = constants[4].data();
    e.common.two_sided = two_sided, e.common.center = 0.75f, e.common.low = low, e.common.high = high;
    e.common.residual = with_residual ? &residual.map() : nullptr;
    e.common.masks = masks;
    return e;
  }
};

// The input as the kernels of an instruction set see it: rows that the output rows [first_row, last_row) of some images
// read.
struct NarrowInput {
  NarrowMap map;
  Bytes memory;

  NarrowInput(const NarrowKernels& kernels, const NarrowProblem& p, const NarrowOrder& order, int first_image,
              int last_image, int first_row, int last_row)
      : map(geometry(p, order, first_image, last_image, first_row, last_row)),
        memory(map.image_stride * (last_image - first_image) * kernels.format.element_bytes() + kNarrowSlack) {
    map.data = memory.data();
    const std::int32_t* channel_at = order.identity ? nullptr : order.channel_at.data();
    kernels.round({p.input.map(), map, channel_at, p.rounding()});
  }

  static NarrowMap geometry(const NarrowProblem& p, const NarrowOrder& order, int first_image, int last_image,
                            int first_row, int last_row) {
    const ConvShape& s = p.shape;
    NarrowMap map{};
    map.first_image = first_image, map.last_image = last_image;
    map.first_row = first_row * s.stride[0] - s.padding[0];
    map.last_row = (last_row - 1) * s.stride[0] - s.padding[0] + s.dilation[0] * (s.kernel[0] - 1) + 1;
    map.border = s.padding[1];
    map.height = p.height, map.width = p.width;
    map.pixel_stride = order.elements();
    map.row_stride = (p.width + 2 * map.border) * map.pixel_stride;
    map.image_stride = (map.last_row - map.first_row) * map.row_stride;
    return map;
  }
};

// Image ranges and row ranges, as the engine cuts them.
struct Part {
  int first_image, last_image, first_row, last_row;
};
inline std::vector<Part> whole(const NarrowProblem& p) { return {{0, p.images, 0, p.out_height}}; }
inline std::vector<Part> cut(const NarrowProblem& p) {
  std::vector<Part> parts;
  for (int image = p.images; image-- > 0;) {
    const int row = p.out_height / 3;
    if (row > 0) parts.push_back({image, image + 1, 0, row});
    parts.push_back({image, image + 1, row, p.out_height});
  }
  return parts;
}

// What is asked for beside the sums.
struct Variant {
  NarrowEpilogue kind;
  bool residual, two_sided;

  bool masked() const { return kind != NarrowEpilogue::plain; }
};
// Those that the problem's decisions allow.
inline std::vector<Variant> variants(const NarrowProblem& p) {
  std::vector<Variant> all = {{NarrowEpilogue::plain, false, false}, {NarrowEpilogue::plain, true, false},
                              {NarrowEpilogue::group, true, true},   {NarrowEpilogue::group, false, false}};
  if (p.decisions == p.shape.out_channels) {
    all.insert(all.end(), {{NarrowEpilogue::gate, true, false}, {NarrowEpilogue::gate, false, true}});
  }
  return all;
}

struct Result {
  Framed output;
  std::vector<std::uint16_t> masks;
  RoundedOutput rounded;

  Result(const NarrowKernels& kernels, const NarrowProblem& p)
      : output(p.images, p.shape.out_channels, p.out_height, p.out_width, 1, poison()),
        masks(p.pixels() * p.words(), 0xbeef),
        rounded{rounded_geometry(p), {37.0f, 100}},
        kernels_(kernels),
        bytes_(rounded.map.image_stride * p.images * kernels.format.element_bytes()),
        memory_(bytes_) {
    rounded.map.data = memory_.data();
  }

  // Whether all outputs, and only they, are there rounded as the pass that rounds maps would round them.
  bool rounded_as_output() const {
    Bytes frames(bytes_), pass(bytes_);
    NarrowMap map = rounded.map;
    map.data = pass.data();
    kernels_.round({output.map(), map, nullptr, rounded.rounding});
    const std::int64_t pixel = map.pixel_stride * kernels_.format.element_bytes();
    const std::int64_t row = map.row_stride * kernels_.format.element_bytes(), rows = map.height + 2;
    for (std::int64_t i = 0; i < map.last_image * rows; ++i) {
      if (i % rows == 0 || i % rows == rows - 1) continue;
      std::memcpy(frames.data() + i * row + pixel, pass.data() + i * row + pixel, map.width * pixel);
    }
    return std::memcmp(frames.data(), rounded.map.data, bytes_) == 0;
  }

 private:
  static NarrowMap rounded_geometry(const NarrowProblem& p) {
    NarrowMap map{};
    map.last_image = p.images;
    map.border = 1, map.height = p.out_height, map.width = p.out_width;
    map.first_row = -1, map.last_row = map.height + 1;
    map.pixel_stride = padded_channels(p.shape.out_channels);
    map.row_stride = (map.width + 2) * map.pixel_stride;
    map.image_stride = (map.height + 2) * map.row_stride;
    return map;
  }

  const NarrowKernels& kernels_;
  const std::int64_t bytes_;
  Bytes memory_;
};

// What follows the base path: nothing, the conditional path, or both sums everywhere.
enum class Rest { none, sparse, masked };

// The base path, and what follows it, part by part. `floats`: not the rounded output alone.
inline void run(const NarrowKernels& k, const NarrowProblem& p, const Variant& v, Rest rest_path,
                const std::vector<Part>& parts, Result& result, bool floats = true) {
  Map output = result.output.map();
  if (!floats) output.data = nullptr;
  const NarrowOrder order = narrow_order(p.shape, true, k.format);
  const NarrowWeights base = pack_narrow(p.shape, p.base_weight().data(), order, p.zero, k.format);
  const int blocks = rest_path == Rest::masked ? p.shape.blocks : p.decisions;
  const NarrowWeights rest = pack_narrow_rest(p.shape, p.weight.data(), blocks, order, p.zero, k.format);
  for (const Part& part : parts) {
    NarrowInput input(k, p, order, part.first_image, part.last_image, part.first_row, part.last_row);
    const std::int64_t map = std::int64_t{p.out_height} * p.out_width;
    const std::int64_t begin = part.first_image * map + part.first_row * p.out_width;
    const std::int64_t end = (part.last_image - 1) * map + part.last_row * p.out_width;
    Bytes sums(k.conv_scratch_bytes(p.shape.out_channels));
    NarrowEnding ending = p.ending(v.kind, v.residual, v.two_sided, result.masks.data());
    ending.rounded = &result.rounded;
    k.conv({&p.shape, base.view(), input.map, output, ending, begin, end, sums.data()});
    if (rest_path == Rest::none) continue;
    if (rest_path == Rest::masked) {
      ending.kind = NarrowEpilogue::masked;
      ending.common.scale = p.constants[6].data(), ending.common.bias = p.constants[7].data();
      k.conv({&p.shape, rest.view(), input.map, output, ending, begin, end, sums.data()});
      continue;
    }
    Bytes scratch(k.conditional_scratch_bytes(p.shape.out_channels, p.decisions));
    k.conditional({&p.shape, rest.view(), input.map, output, p.constants[6].data(), p.constants[7].data(),
                   p.low, p.high, ending.common.residual, ending.rounded, result.masks.data(), begin, end,
                   scratch.data()});
  }
}

// Whether what a run rounded is right, and the same if nothing else is wanted; if a gate left decisions open, all are
// nonsense.
inline bool rounds(const NarrowKernels& k, const NarrowProblem& p, const Variant& v, Rest rest,
                   const std::vector<Part>& parts, Result& result) {
  if (v.masked()) return rest == Rest::none || result.rounded_as_output();
  Result alone(k, p);
  run(k, p, v, rest, parts, alone, false);
  std::copy(result.output.begin(), result.output.begin() + result.output.size(), alone.output.begin());
  return result.rounded_as_output() && alone.rounded_as_output();
}

// A failed problem, for people.
inline std::string shown(const NarrowProblem& p, const Variant& v, Rest rest) {
  const ConvShape& s = p.shape;
  char text[256];
  std::snprintf(text, sizeof text,
                "epilogue %d, rest %d, in %d out %d blocks %d decisions %d kernel %dx%d stride %dx%d",
                static_cast<int>(v.kind), static_cast<int>(rest), s.in_channels, s.out_channels, s.blocks, p.decisions,
                s.kernel[0], s.kernel[1], s.stride[0], s.stride[1]);
  return text;
}

}  // namespace headgate
