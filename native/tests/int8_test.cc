// The integer kernels against exact references: every result must be the same bit for bit.
#include <cstdio>
#include <numeric>
#include <string>

#include "tests/check.h"
#include "tests/int8_problem.h"
#include "tests/isas.h"

namespace headgate {
namespace {

// Every instruction set, and AVX-512 on a CPU that does not multiply bytes.
struct Named {
  std::string name;
  Int8Kernels kernels;
};
std::vector<Named> all_kernels() {
  std::vector<Named> all;
  for (Isa isa : isas()) {
    const bool vnni = isa == Isa::avx512 && cpu_has_vnni();
    all.push_back({name(isa), int8_kernels(isa, vnni)});
    if (vnni) all.push_back({"avx512 without VNNI", int8_kernels(isa, false)});
    if (isa == Isa::avx512 && !vnni) std::printf("not tested, as the CPU lacks it: VNNI\n");
  }
  return all;
}

enum class Lists { contiguous, shuffled, any, first };

ConvShape shape_of(int in, int out, int blocks, Lists lists, int kh = 3, int kw = 3, int sh = 1, int sw = 1, int ph = 1,
                   int pw = 1, int dh = 1, int dw = 1) {
  ConvShape shape{in, out, {kh, kw}, {sh, sw}, {ph, pw}, {dh, dw}, blocks, std::max(1, in / blocks), {}};
  if (lists == Lists::first) shape.inputs_per_block = std::max(1, in / 4);
  std::mt19937 random(in * 31 + out);
  for (int block = 0; block < blocks; ++block) {
    std::vector<int> channels(in);
    std::iota(channels.begin(), channels.end(), 0);
    if (lists == Lists::any) std::shuffle(channels.begin(), channels.end(), random);
    for (int i = 0; i < shape.inputs_per_block; ++i) {
      const int channel = lists == Lists::contiguous ? block * shape.inputs_per_block + i
                          : lists == Lists::shuffled ? i * blocks + block
                                                     : channels[i];
      shape.inputs.push_back(channel % in);
    }
  }
  return shape;
}

// What the definition makes of the base path's sums: the output, and the bits of the masks.
struct Expected {
  std::vector<float> output;
  std::vector<bool> open;
};

float ended(const float* scale, const float* bias, float sum, const float* residual, int c) {
  float y = sum * scale[c];
  y = y + bias[c];
  if (residual != nullptr) y = y + residual[c];
  return std::clamp(y, -0.5f, 2.0f);
}

// Lanes half a group apart first, where its size is a power of two.
float group_sum(std::vector<float> n) {
  const std::size_t size = n.size();
  if ((size & (size - 1)) == 0) {
    for (std::size_t half = size / 2; half > 0; half /= 2) {
      for (std::size_t i = 0; i < half; ++i) n[i] = n[i] + n[i + half];
    }
    return n[0];
  }
  for (std::size_t i = 1; i < size; ++i) n[0] = n[0] + n[i];
  return n[0];
}

Expected expected(const Int8Problem& p, const Int8Ending& e) {
  Expected result;
  const std::vector<std::int64_t> sums = p.sums(true);
  const int channels = p.shape.out_channels, size = channels / p.decisions;
  for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const auto [image, y, x] = p.place(pixel);
    const float* residual = e.common.residual == nullptr ? nullptr : pixel_at(*e.common.residual, image, y, x);
    std::vector<float> sum(channels), score(channels);
    for (int c = 0; c < channels; ++c) {
      sum[c] = static_cast<float>(sums[pixel * channels + c]);
      if (e.kind == Int8Epilogue::plain) continue;
      score[c] = sum[c] * e.common.score_scale[c];
      score[c] = score[c] + e.common.score_bias[c];
      if (e.common.two_sided) score[c] = e.common.center - std::abs(score[c]);
    }
    for (int c = 0; c < channels; ++c) {
      bool open = false;
      if (e.kind == Int8Epilogue::gate) open = score[c] > e.common.threshold[c];
      if (e.kind == Int8Epilogue::group) {
        const auto first = score.begin() + c / size * size;
        open = group_sum({first, first + size}) * e.gain[c] > e.common.threshold[c];
      }
      result.output.push_back(open ? sum[c] : ended(e.common.scale, e.common.bias, sum[c], residual, c));
      result.open.push_back(open);
    }
  }
  return result;
}

struct Result {
  Framed output;
  std::vector<std::uint16_t> masks;

  explicit Result(const Int8Problem& p)
      : output(p.images, p.shape.out_channels, p.out_height, p.out_width, 1, poison()),
        masks(p.pixels() * p.words(), 0xbeef) {}
};

// Image ranges and row ranges, as the engine cuts them.
struct Part {
  int first_image, last_image, first_row, last_row;
};
std::vector<Part> whole(const Int8Problem& p) { return {{0, p.images, 0, p.out_height}}; }
std::vector<Part> cut(const Int8Problem& p) {
  std::vector<Part> parts;
  for (int image = p.images; image-- > 0;) {
    const int row = p.out_height / 3;
    if (row > 0) parts.push_back({image, image + 1, 0, row});
    parts.push_back({image, image + 1, row, p.out_height});
  }
  return parts;
}

void run(const Int8Kernels& k, const Int8Problem& p, Int8Epilogue kind, bool residual, bool two_sided, bool conditional,
         const std::vector<Part>& parts, Result& result) {
  const Int8Order order = int8_order(p.shape, true);
  const Int8Format format = k.quantise.format;
  const Int8Weights base = pack_int8(p.shape, p.base_weight().data(), order, p.zero, format);
  const Int8Weights rest = pack_int8_rest(p.shape, p.weight.data(), p.decisions, order, p.zero, format);
  for (const Part& part : parts) {
    Int8Input input(k, p, order, part.first_image, part.last_image, part.first_row, part.last_row);
    const std::int64_t map = std::int64_t{p.out_height} * p.out_width;
    const std::int64_t begin = part.first_image * map + part.first_row * p.out_width;
    const std::int64_t end = (part.last_image - 1) * map + part.last_row * p.out_width;
    Bytes sums(k.conv.scratch_words(p.shape.out_channels) * 4);
    const Int8Ending ending = p.ending(kind, residual, two_sided, result.masks.data());
    k.conv.run({&p.shape, base.view(), input.map, result.output.map(), ending, begin, end,
                reinterpret_cast<std::int32_t*>(sums.data())});
    if (!conditional) continue;
    Bytes scratch(k.conditional.scratch_bytes(p.shape.out_channels, p.decisions));
    k.conditional.run({&p.shape, rest.view(), input.map, result.output.map(), p.constants[6].data(),
                       p.constants[7].data(), -0.5f, 2.0f, ending.common.residual, result.masks.data(), begin, end,
                       scratch.data()});
  }
}

std::int64_t outputs = 0, opened = 0;

// The first difference, or nothing.
std::string difference(const Int8Problem& p, const Expected& expected, bool masked, Result& result) {
  std::int64_t written = 0;
  for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const auto [image, y, x] = p.place(pixel);
    const float* out = result.output.at(image, y, x);
    for (int c = 0; c < p.words() * kLanes; ++c, ++written) {
      const bool real = c < p.shape.out_channels;
      const float value = real ? expected.output[pixel * p.shape.out_channels + c] : 0.0f;
      const bool open = real && expected.open[pixel * p.shape.out_channels + c];
      const bool bit = result.masks[pixel * p.words() + c / kLanes] >> c % kLanes & 1;
      const std::string where = " of image " + std::to_string(image) + " y " + std::to_string(y) + " x " +
                                std::to_string(x) + " channel " + std::to_string(c);
      if (masked && bit != open) return "decision" + where;
      if (!same_bits(out[c], value)) {
        return "output" + where + " is " + std::to_string(out[c]) + ", not " + std::to_string(value);
      }
      ++outputs, opened += masked && open;
    }
  }
  for (std::int64_t i = 0; i < result.output.size(); ++i) written -= !poisoned(result.output.begin()[i]);
  return written == 0 ? "" : "the frame was touched";
}

void check(const Int8Problem& p) {
  struct Variant {
    Int8Epilogue kind;
    bool residual, two_sided;
  };
  for (const Variant& v : {Variant{Int8Epilogue::plain, false, false}, Variant{Int8Epilogue::plain, true, false},
                           Variant{Int8Epilogue::gate, true, false}, Variant{Int8Epilogue::gate, false, true},
                           Variant{Int8Epilogue::group, true, true}, Variant{Int8Epilogue::group, false, false}}) {
    const bool masked = v.kind == Int8Epilogue::gate || v.kind == Int8Epilogue::group;
    if (v.kind == Int8Epilogue::gate && p.decisions != p.shape.out_channels) continue;
    const Int8Ending ending = p.ending(v.kind, v.residual, v.two_sided, nullptr);
    Expected base = expected(p, ending), final = base;
    if (masked) {
      const std::vector<std::int64_t> rest = p.sums(false);
      for (std::size_t i = 0; i < rest.size(); ++i) {
        if (!base.open[i]) continue;
        const int channels = p.shape.out_channels, c = static_cast<int>(i % channels);
        const std::int64_t pixel = static_cast<std::int64_t>(i) / channels;
        const float* residual = nullptr;
        if (v.residual) {
          const auto [image, y, x] = p.place(pixel);
          residual = pixel_at(p.residual.map(), image, y, x);
        }
        const float sum = base.output[i] + static_cast<float>(rest[i]);
        final.output[i] = ended(p.constants[6].data(), p.constants[7].data(), sum, residual, c);
      }
    }
    for (const Named& isa : all_kernels()) {
      for (bool conditional : {false, true}) {
        if (conditional && !masked) continue;
        for (const std::vector<Part>& parts : {whole(p), cut(p)}) {
          Result result(p);
          run(isa.kernels, p, v.kind, v.residual, v.two_sided, conditional, parts, result);
          const std::string problem = difference(p, conditional ? final : base, masked, result);
          if (problem.empty()) continue;
          const ConvShape& s = p.shape;
          std::printf("%s, epilogue %d, conditional %d, %zu parts: in %d out %d blocks %d decisions %d kernel %dx%d "
                      "stride %dx%d: %s\n",
                      isa.name.c_str(), static_cast<int>(v.kind), conditional, parts.size(), s.in_channels,
                      s.out_channels, s.blocks, p.decisions, s.kernel[0], s.kernel[1], s.stride[0], s.stride[1],
                      problem.c_str());
          CHECK(problem.empty());
          return;
        }
      }
    }
  }
}

TEST(quantised_maps) {
  for (const Named& isa : all_kernels()) {
    for (int zero : {0, 1, 128, 255}) {
      for (Lists lists : {Lists::contiguous, Lists::shuffled}) {
        Int8Problem p(shape_of(20, 20, 4, lists, 3, 3, 1, 1, 1, 2), 2, 4, 5, 4, zero);
        p.inverse_scale = 1.0f;
        const float infinity = std::numeric_limits<float>::infinity();
        const float special[] = {0.5f,   1.5f,    2.5f,  -0.5f,  -1.5f,    0.49999997f, 254.5f, 255.5f, 300.0f,
                                 -300.0f, 1e30f, -1e30f, infinity, -infinity, 1e-40f, -0.0f,
                                 std::numeric_limits<float>::quiet_NaN()};
        for (int i = 0; i < 17; ++i) p.input.at(1, 2, 3)[i] = special[i];
        const std::vector<int> reference = quantise_reference(p.input.map(), 2, 1.0f, zero);
        const Int8Order order = int8_order(p.shape, true);
        CHECK_EQ(order.identity, lists == Lists::contiguous);
        Int8Input input(isa.kernels, p, order, 0, 2, 0, 4);
        const bool biased = isa.kernels.quantise.format.biased();
        int wrong = 0;
        for (int image = 0; image < 2; ++image) {
          for (int row = -1; row < 5; ++row) {
            for (int x = -2; x < 7; ++x) {
              for (int position = 0; position < 20; ++position) {
                const Int8Map& map = input.map;
                const std::int64_t at = image * map.image_stride + (row - map.first_row) * map.row_stride +
                                        (x + 2) * map.pixel_stride + position;
                std::int16_t wide;
                std::memcpy(&wide, input.map.data + (biased ? at : 2 * at), 2);
                const int got = biased ? static_cast<int>(input.map.data[at]) - zero : wide;
                const bool outside = row < 0 || row >= 4 || x < 0 || x >= 5;
                const int pixel = (image * 4 + row) * 5 + x;
                wrong += got != (outside ? 0 : reference[pixel * 20 + order.channel_at[position]]);
              }
            }
          }
        }
        CHECK_EQ(wrong, 0);
      }
    }
  }
}

TEST(weights_are_rounded_per_channel) {
  const float weight[] = {1.0f, -2.0f, 0.5f, 0.0f, 0.0f, 0.0f, 127.0f, 2.5f, -3.5f, 1e-40f, -1e-40f, 0.0f};
  const Int8Tensor tensor = quantise_weights(weight, 4, 3);
  const std::vector<std::int8_t> expected = {64, -127, 32, 0, 0, 0, 127, 2, -4, 127, -127, 0};
  CHECK(tensor.values == expected);
  CHECK_EQ(tensor.scale[0], 2.0 / 127);
  CHECK_EQ(tensor.scale[1], 1.0);
  CHECK_EQ(tensor.scale[2], 1.0);
}

TEST(channels_and_groups) {
  for (int zero : {0, 77}) {
    for (int channels : {8, 16, 24, 40, 64}) {
      for (Lists lists : {Lists::contiguous, Lists::shuffled, Lists::any}) {
        check(Int8Problem(shape_of(channels, channels, 8, lists), 1, 5, 6, 8, zero));
        check(Int8Problem(shape_of(channels, channels, 4, lists), 1, 5, 6, channels, zero));
      }
      check(Int8Problem(shape_of(channels, channels, 1, Lists::first), 1, 4, 5, 8, zero));
      check(Int8Problem(shape_of(channels, channels, 4, Lists::contiguous), 1, 4, 5, 2, zero));
    }
  }
}

TEST(channels_that_are_picked_one_by_one) {
  check(Int8Problem(shape_of(144, 16, 8, Lists::shuffled), 1, 3, 4, 8, 7));
}

TEST(dense_convolutions_of_any_channels) {
  for (int in : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65}) {
    for (int out : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33}) {
      check(Int8Problem(shape_of(in, out, 1, Lists::contiguous), 1, 3, 4, 1, 3));
    }
  }
}

TEST(groups_of_every_size) {
  for (int size : {1, 2, 3, 4, 5, 8, 12, 16, 20, 32, 48, 64, 128}) {
    check(Int8Problem(shape_of(16, 2 * size, 2, Lists::contiguous, 1, 1, 1, 1, 0, 0), 1, 4, 5, 2, 9));
  }
}

TEST(pixels_of_every_tile) {
  for (int width = 1; width <= 33; ++width) {
    check(Int8Problem(shape_of(16, 16, 2, Lists::shuffled), 1, 1, width, 2, 5));
    check(Int8Problem(shape_of(16, 48, 1, Lists::first), 1, 1, width, 3, 5));
  }
}

TEST(batches) {
  for (int images = 1; images <= 33; ++images) {
    check(Int8Problem(shape_of(16, 16, 4, Lists::shuffled), images, 3, 2, 4, 5));
  }
}

TEST(windows) {
  struct Window {
    int kernel[2], stride[2], padding[2], dilation[2];
  };
  for (const Window& w : {Window{{1, 1}, {1, 1}, {0, 0}, {1, 1}}, Window{{1, 1}, {2, 2}, {0, 0}, {1, 1}},
                          Window{{3, 3}, {2, 2}, {1, 1}, {1, 1}}, Window{{3, 3}, {1, 1}, {0, 0}, {1, 1}},
                          Window{{3, 3}, {1, 1}, {2, 2}, {2, 2}}, Window{{3, 1}, {1, 2}, {1, 0}, {1, 3}},
                          Window{{1, 5}, {1, 1}, {0, 2}, {1, 1}}, Window{{5, 3}, {3, 2}, {4, 0}, {2, 3}},
                          Window{{7, 7}, {2, 2}, {3, 3}, {1, 1}}, Window{{2, 2}, {1, 1}, {1, 1}, {1, 1}}}) {
    for (Lists lists : {Lists::contiguous, Lists::shuffled}) {
      for (int blocks : {1, 4}) {
        check(Int8Problem(shape_of(16, 20, blocks, lists, w.kernel[0], w.kernel[1], w.stride[0], w.stride[1],
                                   w.padding[0], w.padding[1], w.dilation[0], w.dilation[1]),
                          2, 11, 10, 4, 6));
      }
    }
  }
}

TEST(the_largest_sums_do_not_overflow) {
  for (int zero : {0, 255}) {
    Int8Problem p(shape_of(7281, 8, 1, Lists::first), 1, 3, 3, 8, zero);  // 65529 products
    p.shape.inputs_per_block = 7281;
    p.shape.inputs.resize(7281);
    std::iota(p.shape.inputs.begin(), p.shape.inputs.end(), 0);
    for (std::size_t i = 0; i < p.weight.size(); ++i) p.weight[i] = i < p.weight.size() / 2 ? 127 : -127;
    for (int pixel = 0; pixel < 9; ++pixel) {
      for (int c = 0; c < 7281; ++c) p.input.at(0, pixel / 3, pixel % 3)[c] = zero == 0 ? 1e9f : -1e9f;
    }
    p.quantised = quantise_reference(p.input.map(), 1, p.inverse_scale, zero);
    const std::vector<std::int64_t> sums = p.sums(true);
    CHECK_EQ(std::abs(sums[4 * 8]), std::int64_t{65529} * 255 * 127);
    check(p);
  }
}

TEST(gates_opened_and_closed) {
  std::printf("%ld outputs compared, %ld of them open\n", outputs, opened);
  CHECK(opened * 8 > outputs / 8 && opened < outputs);
}

}  // namespace
}  // namespace headgate
