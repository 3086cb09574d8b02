// Decisions of groups, scores of channels, closing, counting, against plain loops in float64: exact outside the band
// that rounding leaves open.
#include "kernels/decide/decide.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <memory>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "tests/check.h"
#include "tests/isas.h"
#include "tests/map_problem.h"

namespace headgate {
namespace {

constexpr float kLow = -0.5f, kHigh = 2.0f, kInfinity = std::numeric_limits<float>::infinity();
constexpr float kCenter = 0.75f;

const DecideKernels& kernels(Isa isa) { return kernel_set(isa).decide; }

using Masks = std::vector<std::uint16_t>;

// The base path's sums of some images, with all that decides over them.
struct Problem {
  int images, channels, group_size, height, width, words;
  InputMap sums, residual;
  Aligned score_scale, score_bias, closed_scale, closed_bias, gain, threshold;
  bool two_sided, with_residual;
  std::mt19937 random;

  Problem(int n, int groups, int size, int h, int w, unsigned variant)
      : images(n), channels(groups * size), group_size(size), height(h), width(w),
        words(padded_channels(channels) / kLanes), sums(n, channels, h, w, size), residual(n, channels, h, w, size + 1),
        score_scale(words * kLanes, 0.0f), score_bias(words * kLanes, 0.0f), closed_scale(words * kLanes, 0.0f),
        closed_bias(words * kLanes, 0.0f), gain(words * kLanes, 0.0f), threshold(words * kLanes, kInfinity),
        two_sided(variant % 2 == 1), with_residual(variant / 2 % 2 == 1), random(channels + variant) {
    std::normal_distribution<float> normal;
    for (int c = 0; c < channels; ++c) {
      for (Aligned* a : {&score_scale, &score_bias, &closed_scale, &closed_bias}) a->data()[c] = normal(random);
      const int first = c - c % size;  // of the group, which has one threshold and one gain
      gain.data()[c] = c == first ? 0.5f + std::abs(normal(random)) : gain.data()[first];
      threshold.data()[c] = c == first ? 0.3f * normal(random) : threshold.data()[first];
    }
  }

  std::int64_t pixels() const { return std::int64_t{images} * height * width; }
  Score score() { return {score_scale.data(), score_bias.data(), two_sided, kCenter}; }
  Closed closed() {
    return {closed_scale.data(), closed_bias.data(), kLow, kHigh, with_residual ? &residual.map() : nullptr};
  }

  float* at(Framed& map, std::int64_t pixel) const {
    return map.at(pixel / (height * width), pixel / width % height, pixel % width);
  }

  // n of one output, and what roundings may make of it.
  Expected score_of(std::int64_t pixel, int c) {
    const double scaled = double{at(sums, pixel)[c]} * score_scale.data()[c], bias = score_bias.data()[c];
    const double n = two_sided ? kCenter - std::abs(scaled + bias) : scaled + bias;
    return {n, 1.01 * kUnit * (std::abs(scaled) + std::abs(scaled + bias) + std::abs(n))};
  }

  Expected closed_value(std::int64_t pixel, int c) {
    const double scaled = double{at(sums, pixel)[c]} * closed_scale.data()[c], bias = closed_bias.data()[c];
    const double r = with_residual ? at(residual, pixel)[c] : 0.0f;
    return {std::clamp(scaled + bias + r, double{kLow}, double{kHigh}),
            4 * kUnit * (std::abs(scaled) + std::abs(bias) + std::abs(r))};
  }

  // A copy of the sums, which the kernels write over.
  std::unique_ptr<Framed> output() {
    auto copy = std::make_unique<Framed>(images, channels, height, width, sums.map().border, poison());
    std::copy_n(sums.begin(), sums.size(), copy->begin());
    return copy;
  }
};

bool bit(const Masks& masks, std::int64_t word, int c) { return masks[word + c / kLanes] >> c % kLanes & 1; }

int decisions = 0, undecided = 0, checked = 0;

// What is wrong with one pixel's outputs where `open` are the bits of those that stay as they are, or nothing.
std::string problem_with_pixel(Problem& p, std::int64_t pixel, Framed& output, const Masks& open, std::int64_t word) {
  const float *before = p.at(p.sums, pixel), *after = p.at(output, pixel);
  for (int c = 0; c < p.words * kLanes; ++c) {
    const bool stays = c >= p.channels || bit(open, word, c);
    const bool right = stays ? after[c] == before[c] : as_expected(after[c], p.closed_value(pixel, c));
    if (!right) return "pixel " + std::to_string(pixel) + " channel " + std::to_string(c) + ": output";
  }
  return "";
}

// Nothing but pixels [begin, end) differs from the sums.
bool untouched_outside(Problem& p, Framed& output, std::int64_t begin, std::int64_t end) {
  for (std::int64_t pixel = begin; pixel < end; ++pixel) {
    std::copy_n(p.at(p.sums, pixel), p.words * kLanes, p.at(output, pixel));
  }
  return std::memcmp(output.begin(), p.sums.begin(), output.size() * sizeof(float)) == 0;
}

std::string problem_with_group_decisions(Problem& p, Framed& output, const Masks& masks, std::int64_t begin,
                                         std::int64_t end) {
  for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const std::int64_t word = pixel * p.words;
    const std::string where = "pixel " + std::to_string(pixel) + " channel ";
    if (pixel < begin || pixel >= end) {
      for (int i = 0; i < p.words; ++i) {
        if (masks[word + i] != 0xbeef) return where + "any: the mask of another pixel was touched";
      }
      continue;
    }
    for (int first = 0; first < p.channels; first += p.group_size) {
      double sum = 0, error = 0, magnitude = 0;
      for (int c = first; c < first + p.group_size; ++c) {
        const Expected n = p.score_of(pixel, c);
        sum += n.value, error += n.tolerance, magnitude += std::abs(n.value);
        if (bit(masks, word, c) != bit(masks, word, first)) return where + std::to_string(c) + ": not as its group";
      }
      const double gain = p.gain.data()[first], threshold = p.threshold.data()[first];
      const double band = gain * (error + 1.01 * kUnit * (p.group_size + 1) * magnitude);
      ++decisions;
      if (std::abs(gain * sum - threshold) <= band) {
        ++undecided;
      } else if (bit(masks, word, first) != (gain * sum > threshold)) {
        return where + std::to_string(first) + ": decision";
      }
    }
    for (int c = p.channels; c < p.words * kLanes; ++c) {
      if (bit(masks, word, c)) return where + std::to_string(c) + ": padding is open";
    }
    const std::string problem = problem_with_pixel(p, pixel, output, masks, word);
    if (!problem.empty()) return problem;
  }
  return untouched_outside(p, output, begin, end) ? "" : "memory outside was touched";
}

void report(const char* what, Isa isa, const Problem& p, const std::string& problem) {
  if (!problem.empty()) {
    std::printf("%s, %s, %d channels in groups of %d: %s\n", what, name(isa), p.channels, p.group_size, problem.c_str());
  }
  CHECK(problem.empty());
  ++checked;
}

void check_groups(int images, int groups, int group_size, int height, int width) {
  for (unsigned variant = 0; variant < 4; ++variant) {
    Problem p(images, groups, group_size, height, width, variant);
    const std::int64_t n = p.pixels();
    for (Isa isa : isas()) {
      for (const auto& [begin, end] : {std::pair{std::int64_t{0}, n}, std::pair{n / 3, n - n / 5}}) {
        const std::unique_ptr<Framed> output = p.output();
        Masks masks(n * p.words, 0xbeef);
        Aligned scratch((p.words + 1) * kLanes, poison());
        kernels(isa).group({.output = output->map(), .score = p.score(), .closed = p.closed(), .gain = p.gain.data(),
                            .threshold = p.threshold.data(), .group_size = group_size, .masks = masks.data(),
                            .begin = begin, .end = end, .scratch = scratch.data()});
        report("group", isa, p, problem_with_group_decisions(p, *output, masks, begin, end));
        for (int i = 0; i < kLanes; ++i) CHECK(poisoned(scratch.data()[p.words * kLanes + i]));
      }
    }
  }
}

TEST(groups_of_any_size) {
  for (int size : {1, 2, 3, 4, 5, 6, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48}) {
    for (int groups : {1, 2, 3, 5, 16}) check_groups(2, groups, size, 3, 5);
  }
}

TEST(batches) {
  for (int images = 1; images <= 33; ++images) check_groups(images, 3, 3, 2, 1);
}

// A group whose score is no number stays closed, and so does none beside it.
TEST(not_a_number_stays_closed) {
  for (int size : {1, 2, 3, 4, 8, 16, 17}) {
    Problem p(1, 4, size, 1, 1, 0);
    for (int c = 0; c < p.channels; ++c) p.threshold.data()[c] = -1e30f;
    const int bad = 2 * size;  // the third group's first channel
    p.at(p.sums, 0)[bad] = std::numeric_limits<float>::quiet_NaN();
    for (Isa isa : isas()) {
      const std::unique_ptr<Framed> output = p.output();
      Masks masks(p.words);
      Aligned scratch(p.words * kLanes, poison());
      kernels(isa).group({output->map(), p.score(), p.closed(), p.gain.data(), p.threshold.data(), size, masks.data(), 0,
                          1, scratch.data()});
      for (int c = 0; c < p.words * kLanes; ++c) CHECK_EQ(bit(masks, 0, c), c < p.channels && c / size != 2);
      CHECK(std::isnan(p.at(*output, 0)[bad]));
    }
  }
}

// Channel gates: Σ n over some pixels of an image, added to what is there.
TEST(scores_of_channels) {
  for (int channels : {1, 15, 16, 17, 33, 40}) {
    for (unsigned variant = 0; variant < 2; ++variant) {
      Problem p(3, channels, 1, 5, 7, variant);
      for (Isa isa : isas()) {
        for (const auto& [begin, end] : {std::pair{0, 35}, std::pair{35, 70}, std::pair{73, 90}, std::pair{104, 105}}) {
          Aligned sums((p.words + 1) * kLanes, poison());
          std::fill_n(sums.data(), p.words * kLanes, 0.25f);
          kernels(isa).sum_scores(p.sums.map(), p.score(), begin, end, sums.data());
          std::string problem;
          for (int c = 0; c < channels; ++c) {
            double sum = 0.25, error = 0, magnitude = 0.25;
            for (int pixel = begin; pixel < end; ++pixel) {
              const Expected n = p.score_of(pixel, c);
              sum += n.value, error += n.tolerance, magnitude += std::abs(n.value);
            }
            const Expected expected{sum, error + 1.01 * kUnit * (end - begin) * magnitude};
            if (!as_expected(sums.data()[c], expected)) problem = "channel " + std::to_string(c);
          }
          report("sum_scores", isa, p, problem);
          for (int i = 0; i < kLanes; ++i) CHECK(poisoned(sums.data()[p.words * kLanes + i]));
        }
      }
    }
  }
}

void check_close(int images, int channels) {
  for (unsigned variant : {0u, 2u}) {  // with and without residual
    Problem p(images, channels, 1, 3, 5, variant);
    const std::int64_t pixels = p.height * p.width, image = images / 2;
    Masks before(p.pixels() * p.words), kept(p.words);
    for (std::uint16_t& word : before) word = p.random();
    for (std::uint16_t& word : kept) word = p.random();
    for (std::size_t i = 0; i < before.size(); ++i) {  // padding never opens
      const int left = channels - static_cast<int>(i) % p.words * kLanes;
      if (left < kLanes) before[i] &= (1 << left) - 1;
    }
    for (Isa isa : isas()) {
      const std::unique_ptr<Framed> output = p.output();
      Masks masks = before;
      kernels(isa).close(output->map(), p.closed(), image, kept.data(), masks.data());
      std::string problem;
      for (std::int64_t i = 0; i < p.pixels() * p.words; ++i) {
        const bool inside = i / p.words / pixels == image;
        if (masks[i] != (inside ? before[i] & kept[i % p.words] : before[i])) problem = "masks";
      }
      for (std::int64_t pixel = image * pixels; pixel < (image + 1) * pixels && problem.empty(); ++pixel) {
        Masks stay(p.words);  // what was closed before, or is still open
        for (int i = 0; i < p.words; ++i) stay[i] = ~before[pixel * p.words + i] | kept[i];
        problem = problem_with_pixel(p, pixel, *output, stay, 0);
      }
      if (problem.empty() && !untouched_outside(p, *output, image * pixels, (image + 1) * pixels)) {
        problem = "memory outside was touched";
      }
      report("close", isa, p, problem);
    }
  }
}

TEST(closing_channels) {
  for (int channels : {1, 15, 16, 17, 33, 40}) check_close(3, channels);
  for (int images = 1; images <= 33; ++images) check_close(images, 5);
}

TEST(counting) {
  std::mt19937 random(9);
  for (int words = 0; words <= 40; ++words) {
    Masks masks(words + 1);
    for (std::uint16_t& word : masks) word = random();
    masks.back() = 0xffff;  // is not to be counted
    std::int64_t bits = 0;
    for (int i = 0; i < words; ++i) bits += std::popcount(masks[i]);
    for (Isa isa : isas()) CHECK_EQ(kernels(isa).count(masks.data(), words), bits);
  }
}

TEST(rounding_leaves_few_decisions_open) {
  std::printf("%d results checked; %d decisions, of which %d within the rounding band\n", checked, decisions,
              undecided);
  CHECK(checked > 900 * static_cast<int>(isas().size()) && undecided < 1e-4 * decisions);
}

}  // namespace
}  // namespace headgate
