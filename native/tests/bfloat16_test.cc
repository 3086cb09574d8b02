// The bfloat16 kernels against float64 on the same rounded numbers, within bounds derived from the number of additions.
#include <cmath>
#include <cstdio>
#include <string>

#include "tests/check.h"
#include "tests/isas.h"
#include "tests/narrow_cases.h"

namespace headgate {
namespace {

struct Named {
  std::string name;
  const NarrowKernels& kernels;
};
std::vector<Named> all_kernels() {
  std::vector<Named> all;
  const Avx512Extras cpu = extras_in_cpu();
  for (Isa isa : isas()) {
    if (isa != Isa::avx512) {
      all.push_back({name(isa), bfloat16_kernels(isa, {})});
      continue;
    }
    all.push_back({"avx512 without BF16", bfloat16_kernels(isa, {})});
    if (cpu.bf16) all.push_back({name(isa), bfloat16_kernels(isa, {.bf16 = true})});
    if (!cpu.bf16) std::printf("not tested, as the CPU lacks it: BF16\n");
#ifdef HEADGATE_EMULATED_TILES
    if (cpu.bf16) all.push_back({"emulated tiles", bfloat16_emulated()});
#endif
    if (cpu.amx) all.push_back({"amx", bfloat16_kernels(isa, cpu)});
  }
  return all;
}

constexpr double kUnit = 0x1p-24;     // of float32's rounding
constexpr double kLeast = 0x1p-126;   // what may count as 0 in one operation

// A number that float32 arithmetic was to compute, and by how much it may be off.
struct Near {
  double value, error;

  bool holds(float found) const {
    if (!std::isfinite(value)) return !std::isfinite(found);  // an infinity may have met 0
    return std::abs(found - value) <= error;
  }
};

// After at most `roundings` more, of numbers no larger than `magnitude` and what the error adds.
Near rounded(double value, double error, double magnitude, int roundings) {
  return {value, error + roundings * (1.001 * kUnit * (magnitude + error) + kLeast)};
}

Near affine(Near sum, float scale, float bias, float residual = 0.0f) {
  const double product = sum.value * scale;
  return rounded(product + bias + residual, sum.error * std::abs(scale),
                 std::abs(product) + std::abs(bias) + std::abs(residual), 3);
}

Near clamped(Near y, const NarrowProblem& p) {  // NaN stays NaN
  return {y.value < p.low ? p.low : y.value > p.high ? p.high : y.value, y.error};
}

// What is to come out of one path's sums, and of both; n of the decision.
struct Expected {
  std::vector<Near> base, all, score;
};

// Sums of `roundings` additions at most, in any order.
Near sum_of(const ReferenceSums& sums, std::size_t i, int roundings) {
  return rounded(sums.sums[i], 0, sums.magnitudes[i], roundings);
}

Expected expected(const NarrowProblem& p, const NarrowEnding& e) {
  const ReferenceSums base = p.sums(true), rest = p.sums(false);
  const int channels = p.shape.out_channels, size = channels / p.decisions;
  const int products = p.shape.in_channels * p.shape.kernel[0] * p.shape.kernel[1] + 4;  // and what lanes add up
  Expected result;
  for (std::size_t i = 0; i < base.sums.size(); ++i) {
    const Near sum = sum_of(base, i, products), other = sum_of(rest, i, products);
    result.base.push_back(sum);
    result.all.push_back(rounded(sum.value + other.value, sum.error + other.error,
                                 std::abs(sum.value) + std::abs(other.value), 1));
  }
  for (std::size_t i = 0; e.kind != NarrowEpilogue::plain && i < base.sums.size(); i += size) {
    Near score{0, 0};
    double magnitude = 0;
    for (int o = 0; o < size; ++o) {
      const int c = static_cast<int>((i + o) % channels);
      Near n = affine(result.base[i + o], e.common.score_scale[c], e.common.score_bias[c]);
      if (e.common.two_sided) {
        n = rounded(e.common.center - std::abs(n.value), n.error, e.common.center + std::abs(n.value), 1);
      }
      score = {score.value + n.value, score.error + n.error};
      magnitude += std::abs(n.value);
    }
    const double gain = e.kind == NarrowEpilogue::group ? e.gain[i % channels] : 1;
    score = rounded(score.value, score.error, magnitude, size);
    score = rounded(score.value * gain, score.error * std::abs(gain), std::abs(score.value * gain), 1);
    result.score.insert(result.score.end(), size, score);
  }
  return result;
}

std::int64_t outputs = 0, opened = 0, doubtful = 0;

// The first thing that is wrong, or nothing. Decisions must be right where rounding cannot tip them, and outputs be
// those that the decisions ask for.
std::string wrong(const NarrowProblem& p, const NarrowEnding& e, const Expected& expected, bool conditional,
                  Result& result) {
  std::int64_t written = 0;
  for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const auto [image, y, x] = p.place(pixel);
    const float* out = result.output.at(image, y, x);
    const float* residual = e.common.residual == nullptr ? nullptr : pixel_at(*e.common.residual, image, y, x);
    const auto bit = [&](int c) { return result.masks[pixel * p.words() + c / kLanes] >> c % kLanes & 1; };
    for (int c = 0; c < p.words() * kLanes; ++c, ++written) {
      const std::string where = " of image " + std::to_string(image) + " y " + std::to_string(y) + " x " +
                                std::to_string(x) + " channel " + std::to_string(c);
      if (c >= p.shape.out_channels) {
        if (!same_bits(out[c], 0.0f)) return "padding" + where;
        if (e.kind != NarrowEpilogue::plain && bit(c) != 0) return "padding's decision" + where;
        continue;
      }
      const std::size_t i = pixel * p.shape.out_channels + c;
      bool open = false;
      if (e.kind != NarrowEpilogue::plain) {
        open = bit(c) != 0;
        const double margin = expected.score[i].value - e.common.threshold[c];
        if (std::isnan(margin) && open) return "decision without a score" + where;
        if (std::abs(margin) > expected.score[i].error) {
          if (open != (margin > 0)) return "decision" + where;
        } else {
          doubtful += std::isfinite(margin);
        }
        const int size = p.shape.out_channels / p.decisions;
        if (open != (bit(c / size * size) != 0)) return "decision of a group" + where;
      }
      const float r = residual == nullptr ? 0.0f : residual[c];
      Near value = expected.base[i];
      if (!open) value = clamped(affine(value, e.common.scale[c], e.common.bias[c], r), p);
      if (open && conditional) value = clamped(affine(expected.all[i], p.constants[6][c], p.constants[7][c], r), p);
      if (!value.holds(out[c])) {
        return "output" + where + " is " + std::to_string(out[c]) + ", not within " + std::to_string(value.error) +
               " of " + std::to_string(value.value);
      }
      ++outputs, opened += open;
    }
  }
  for (std::int64_t i = 0; i < result.output.size(); ++i) written -= !poisoned(result.output.begin()[i]);
  return written == 0 ? "" : "the frame was touched";
}

bool same(Result& a, Result& b) {
  return std::memcmp(a.output.begin(), b.output.begin(), a.output.size() * sizeof(float)) == 0 && a.masks == b.masks;
}

void check(const NarrowProblem& p) {
  for (const Variant& v : variants(p)) {
    const NarrowEnding ending = p.ending(v.kind, v.residual, v.two_sided, nullptr);
    const Expected sums = expected(p, ending);
    for (const Named& isa : all_kernels()) {
      for (Rest rest : {Rest::none, Rest::sparse, Rest::masked}) {
        if (rest != Rest::none && !v.masked()) continue;
        Result result(isa.kernels, p), in_parts(isa.kernels, p);
        run(isa.kernels, p, v, rest, whole(p), result);
        run(isa.kernels, p, v, rest, cut(p), in_parts);
        std::string problem = wrong(p, ending, sums, rest != Rest::none, result);
        if (problem.empty() && !same(result, in_parts)) problem = "in parts, other bits";
        if (problem.empty() && !rounds(isa.kernels, p, v, rest, whole(p), result)) problem = "rounded otherwise";
        if (problem.empty()) continue;
        std::printf("%s, %s: %s\n", isa.name.c_str(), shown(p, v, rest).c_str(), problem.c_str());
        CHECK(problem.empty());
        return;
      }
    }
  }
}

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// Halfway cases of both parities, the largest numbers, and what is not finite.
const std::uint32_t kSpecial[] = {0x3f808000, 0x3f818000, 0x3f808001, 0x3f817fff, 0xbf808000, 0x7f7f7fff,
                                  0x7f7f8000, 0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0x7fc00000,
                                  0xffffffff, 0x7fbfffff, 0x00000000, 0x80000000, 0x00800000, 0x3fffffff};

TEST(rounded_maps) {
  for (const Named& isa : all_kernels()) {
    for (Lists lists : {Lists::contiguous, Lists::shuffled}) {
      NarrowProblem p(Numbers::bfloat16, shape_of(20, 20, 4, lists, 3, 3, 1, 1, 1, 2), 2, 4, 5, 4);
      for (int i = 0; i < 18; ++i) p.input.at(1, 2, 3)[i] = from_bits(kSpecial[i]);
      p.round_input();
      const NarrowFormat format = isa.kernels.format;
      const NarrowOrder order = narrow_order(p.shape, true, format);
      NarrowInput input(isa.kernels, p, order, 0, 2, 0, 4);
      int different = 0;
      for (int image = 0; image < 2; ++image) {
        for (int row = -1; row < 5; ++row) {
          for (int x = -2; x < 7; ++x) {
            for (std::int64_t position = 0; position < order.elements(); ++position) {
              const NarrowMap& map = input.map;
              const std::int64_t at = image * map.image_stride + (row - map.first_row) * map.row_stride +
                                      (x + 2) * map.pixel_stride + position;
              std::uint32_t bits = 0;  // a bfloat16 is the upper half of a float32
              std::memcpy(reinterpret_cast<std::byte*>(&bits) + 4 - format.element_bytes(),
                          map.data + at * format.element_bytes(), format.element_bytes());
              const bool outside = row < 0 || row >= 4 || x < 0 || x >= 5 || order.channel_at[position] < 0;
              const int pixel = (image * 4 + row) * 5 + x;
              const double wanted = outside ? 0 : p.rounded[pixel * 20 + order.channel_at[position]];
              const float got = from_bits(bits);
              different += std::isnan(wanted) ? !std::isnan(got) : !(got == wanted);
            }
          }
        }
      }
      CHECK_EQ(different, 0);
    }
  }
}

TEST(rounded_weights) {
  for (std::uint32_t special : kSpecial) {
    const float weight = from_bits(special);
    if (!std::isfinite(weight)) continue;  // plans have none
    const std::int16_t bits = bfloat16_weights(&weight, 1, 1).values[0];
    CHECK_EQ(double{from_bits(std::uint32_t{static_cast<std::uint16_t>(bits)} << 16)}, bfloat16_reference(weight));
  }
}

TEST(channels_and_groups) { channels_and_groups(Numbers::bfloat16, check); }
TEST(channels_that_are_picked_one_by_one) { channels_that_are_picked_one_by_one(Numbers::bfloat16, check); }
TEST(dense_convolutions_of_any_channels) { dense_convolutions_of_any_channels(Numbers::bfloat16, check); }
TEST(groups_of_every_size) { groups_of_every_size(Numbers::bfloat16, check); }
TEST(pixels_of_every_tile) { pixels_of_every_tile(Numbers::bfloat16, check); }
TEST(batches) { batches(Numbers::bfloat16, check); }
TEST(windows) { windows(Numbers::bfloat16, check); }

// An output that reads a number that is not finite is not finite, and no other one: neither its neighbours, nor those
// of the next image.
TEST(what_is_not_finite_stays_where_it_is) {
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (float special : {nan, infinity, -infinity}) {
    for (int channels : {5, 15, 16, 20, 24, 64}) {
      for (Lists lists : {Lists::contiguous, Lists::shuffled, Lists::any, Lists::first}) {
        for (int blocks : {1, 5, 8}) {
          for (int dilation : {1, 2}) {
            for (int padding : {0, 1}) {
              if (channels % blocks != 0) continue;
              NarrowProblem p(Numbers::bfloat16,
                              shape_of(channels, channels, blocks, lists, 1, 2, 1, 1, 0, padding, 1, dilation), 2, 3, 6,
                              blocks);
              p.low = -infinity, p.high = infinity;
              for (int i = 0; i < 3; ++i) p.input.at(i / 2, i, 5 * i % 6)[(3 * i + 2) % channels] = special;
              p.round_input();
              check(p);
            }
          }
        }
      }
    }
  }
}

TEST(wide_blocks) { wide_blocks(Numbers::bfloat16, check); }

#ifdef HEADGATE_EMULATED_TILES
TEST(wide_blocks_use_tiles) {
  for (int outputs : {15, 16, 40}) {
    for (int inputs : {8, 16, 32, 64}) {
      const ConvShape shape = shape_of(2 * inputs, 2 * outputs, 2, Lists::shuffled);
      const NarrowOrder order = narrow_order(shape, true, bfloat16_emulated().format);
      const std::vector<std::int16_t> weight(std::size_t{2} * outputs * inputs * 9);
      const NarrowWeights packed = pack_narrow(shape, weight.data(), order, 0, bfloat16_emulated().format);
      CHECK_EQ(packed.view().blocks[1].tiled, outputs >= 16 && inputs >= 32);
    }
  }
}

// What the emulation claims, where it can be checked.
TEST(amx_gives_the_bits_of_emulated_tiles) {
  if (!extras_in_cpu().amx) {
    std::printf("not tested, as the CPU lacks it, or the system does not allow it: AMX\n");
    return;
  }
  wide_blocks(Numbers::bfloat16, [](const NarrowProblem& p) {
    for (const Variant& v : variants(p)) {
      for (Rest rest : {Rest::sparse, Rest::masked}) {
        Result real(bfloat16_amx(), p), emulated(bfloat16_emulated(), p);
        run(bfloat16_amx(), p, v, v.masked() ? rest : Rest::none, whole(p), real);
        run(bfloat16_emulated(), p, v, v.masked() ? rest : Rest::none, whole(p), emulated);
        CHECK(same(real, emulated));
      }
    }
  });
}
#endif

TEST(gates_opened_and_closed) {
  std::printf("%ld outputs compared, %ld of them open, %ld decisions in doubt\n", outputs, opened, doubtful);
  CHECK(opened * 8 > outputs / 8 && opened < outputs);
  CHECK(doubtful * 200 < outputs);
}

}  // namespace
}  // namespace headgate
