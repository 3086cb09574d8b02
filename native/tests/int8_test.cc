// The integer kernels against exact references: every result must be the same bit for bit.
#include <cstdio>
#include <numeric>
#include <string>

#include "tests/check.h"
#include "tests/narrow_cases.h"
#include "tests/isas.h"

namespace headgate {
namespace {

// Every instruction set, and AVX-512 on a CPU that does not multiply bytes.
struct Named {
  std::string name;
  const NarrowKernels& kernels;
};
std::vector<Named> all_kernels() {
  std::vector<Named> all;
  for (Isa isa : isas()) {
    const bool vnni = isa == Isa::avx512 && extras_in_cpu().vnni;
    all.push_back({name(isa), int8_kernels(isa, {.vnni = vnni})});
    if (vnni) all.push_back({"avx512 without VNNI", int8_kernels(isa, {})});
    if (isa == Isa::avx512 && !vnni) std::printf("not tested, as the CPU lacks it: VNNI\n");
  }
  return all;
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

Expected expected(const NarrowProblem& p, const NarrowEnding& e) {
  Expected result;
  const std::vector<double> sums = p.sums(true).sums;
  const int channels = p.shape.out_channels, size = channels / p.decisions;
  for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const auto [image, y, x] = p.place(pixel);
    const float* residual = e.common.residual == nullptr ? nullptr : pixel_at(*e.common.residual, image, y, x);
    std::vector<float> sum(channels), score(channels);
    for (int c = 0; c < channels; ++c) {
      sum[c] = static_cast<float>(sums[pixel * channels + c]);
      if (e.kind == NarrowEpilogue::plain) continue;
      score[c] = sum[c] * e.common.score_scale[c];
      score[c] = score[c] + e.common.score_bias[c];
      if (e.common.two_sided) score[c] = e.common.center - std::abs(score[c]);
    }
    for (int c = 0; c < channels; ++c) {
      bool open = false;
      if (e.kind == NarrowEpilogue::gate) open = score[c] > e.common.threshold[c];
      if (e.kind == NarrowEpilogue::group) {
        const auto first = score.begin() + c / size * size;
        open = group_sum({first, first + size}) * e.gain[c] > e.common.threshold[c];
      }
      result.output.push_back(open ? sum[c] : ended(e.common.scale, e.common.bias, sum[c], residual, c));
      result.open.push_back(open);
    }
  }
  return result;
}

std::int64_t outputs = 0, opened = 0;

// The first difference, or nothing.
std::string difference(const NarrowProblem& p, const Expected& expected, bool masked, Result& result) {
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

void check(const NarrowProblem& p) {
  for (const Variant& v : variants(p)) {
    const NarrowEnding ending = p.ending(v.kind, v.residual, v.two_sided, nullptr);
    Expected base = expected(p, ending), final = base;
    if (v.masked()) {
      const std::vector<double> rest = p.sums(false).sums;
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
      for (Rest rest : {Rest::none, Rest::sparse, Rest::masked}) {
        if (rest != Rest::none && !v.masked()) continue;
        for (const std::vector<Part>& parts : {whole(p), cut(p)}) {
          Result result(isa.kernels, p);
          run(isa.kernels, p, v, rest, parts, result);
          std::string problem = difference(p, rest == Rest::none ? base : final, v.masked(), result);
          if (problem.empty() && !rounds(isa.kernels, p, v, rest, parts, result)) problem = "rounded otherwise";
          if (problem.empty()) continue;
          std::printf("%s, %zu parts, %s: %s\n", isa.name.c_str(), parts.size(), shown(p, v, rest).c_str(),
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
        NarrowProblem p(Numbers::int8, shape_of(20, 20, 4, lists, 3, 3, 1, 1, 1, 2), 2, 4, 5, 4, zero);
        p.inverse_scale = 1.0f;
        const float infinity = std::numeric_limits<float>::infinity();
        const float special[] = {0.5f,   1.5f,    2.5f,  -0.5f,  -1.5f,    0.49999997f, 254.5f, 255.5f, 300.0f,
                                 -300.0f, 1e30f, -1e30f, infinity, -infinity, 1e-40f, -0.0f,
                                 std::numeric_limits<float>::quiet_NaN()};
        for (int i = 0; i < 17; ++i) p.input.at(1, 2, 3)[i] = special[i];
        p.round_input();
        const NarrowOrder order = narrow_order(p.shape, true, isa.kernels.format);
        CHECK_EQ(order.identity, lists == Lists::contiguous);
        NarrowInput input(isa.kernels, p, order, 0, 2, 0, 4);
        const bool biased = isa.kernels.format.element == NarrowElement::byte;
        int wrong = 0;
        for (int image = 0; image < 2; ++image) {
          for (int row = -1; row < 5; ++row) {
            for (int x = -2; x < 7; ++x) {
              for (int position = 0; position < 20; ++position) {
                const NarrowMap& map = input.map;
                const std::int64_t at = image * map.image_stride + (row - map.first_row) * map.row_stride +
                                        (x + 2) * map.pixel_stride + position;
                std::int16_t wide;
                std::memcpy(&wide, input.map.data + (biased ? at : 2 * at), 2);
                const int got = biased ? static_cast<int>(input.map.data[at]) - zero : wide;
                const bool outside = row < 0 || row >= 4 || x < 0 || x >= 5;
                const int pixel = (image * 4 + row) * 5 + x;
                wrong += got != (outside ? 0 : p.rounded[pixel * 20 + order.channel_at[position]]);
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
  const NarrowTensor tensor = int8_weights(weight, 4, 3);
  const std::vector<std::int16_t> expected = {64, -127, 32, 0, 0, 0, 127, 2, -4, 127, -127, 0};
  CHECK(tensor.values == expected);
  CHECK_EQ(tensor.scale[0], 2.0 / 127);
  CHECK_EQ(tensor.scale[1], 1.0);
  CHECK_EQ(tensor.scale[2], 1.0);
}

TEST(channels_and_groups) { channels_and_groups(Numbers::int8, check); }
TEST(channels_that_are_picked_one_by_one) { channels_that_are_picked_one_by_one(Numbers::int8, check); }
TEST(dense_convolutions_of_any_channels) { dense_convolutions_of_any_channels(Numbers::int8, check); }
TEST(groups_of_every_size) { groups_of_every_size(Numbers::int8, check); }
TEST(pixels_of_every_tile) { pixels_of_every_tile(Numbers::int8, check); }
TEST(batches) { batches(Numbers::int8, check); }
TEST(wide_blocks) { wide_blocks(Numbers::int8, check); }
TEST(windows) { windows(Numbers::int8, check); }

TEST(the_largest_sums_do_not_overflow) {
  for (int zero : {0, 255}) {
    NarrowProblem p(Numbers::int8, shape_of(7281, 8, 1, Lists::first), 1, 3, 3, 8, zero);  // 65529 products
    p.shape.inputs_per_block = 7281;
    p.shape.inputs.resize(7281);
    std::iota(p.shape.inputs.begin(), p.shape.inputs.end(), 0);
    for (std::size_t i = 0; i < p.weight.size(); ++i) {
      p.reference_weight[i] = p.weight[i] = i < p.weight.size() / 2 ? 127 : -127;
    }
    for (int pixel = 0; pixel < 9; ++pixel) {
      for (int c = 0; c < 7281; ++c) p.input.at(0, pixel / 3, pixel % 3)[c] = zero == 0 ? 1e9f : -1e9f;
    }
    p.round_input();
    CHECK_EQ(std::abs(p.sums(true).sums[4 * 8]), 65529.0 * 255 * 127);
    check(p);
  }
}

TEST(gates_opened_and_closed) {
  std::printf("%ld outputs compared, %ld of them open\n", outputs, opened);
  CHECK(opened * 8 > outputs / 8 && opened < outputs);
}

}  // namespace
}  // namespace headgate
