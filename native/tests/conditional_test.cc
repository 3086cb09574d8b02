#include "kernels/conditional/conditional.h"

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <string>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "kernels/conditional/conditional_reference.h"
#include "tests/check.h"
#include "tests/framed.h"
#include "tests/isas.h"

namespace headgate {
namespace {

constexpr double kUnit = 0x1p-24;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

const ConditionalKernels& kernels(Isa isa, bool group) {
  const KernelSet kernels = kernel_set(isa);
  return group ? kernels.conditional_group : kernels.conditional_activation;
}

enum class Lists { contiguous, shuffled };

ConvShape shape_of(int in, int out, int blocks, Lists lists, int kh = 3, int kw = 3, int sh = 1, int sw = 1, int ph = 1,
                   int pw = 1, int dh = 1, int dw = 1) {
  ConvShape shape{in, out, {kh, kw}, {sh, sw}, {ph, pw}, {dh, dw}, blocks, in / blocks, {}};
  for (int block = 0; block < blocks; ++block) {
    for (int i = 0; i < shape.inputs_per_block; ++i) {
      shape.inputs.push_back(lists == Lists::contiguous ? block * shape.inputs_per_block + i : i * blocks + block);
    }
  }
  return shape;
}

// The base path of all outputs reads the first inputs.
ConvShape first_inputs(int in, int out, int base, int kernel = 3) {
  ConvShape shape{in, out, {kernel, kernel}, {1, 1}, {kernel / 2, kernel / 2}, {1, 1}, 1, base, std::vector<int>(base)};
  std::iota(shape.inputs.begin(), shape.inputs.end(), 0);
  return shape;
}

int output_size(int in, const ConvShape& s, int d) {
  return (in + 2 * s.padding[d] - s.dilation[d] * (s.kernel[d] - 1) - 1) / s.stride[d] + 1;
}

using Masks = std::vector<std::uint16_t>;

// One convolution with everything that it reads.
struct Problem {
  ConvShape shape;
  int images, decisions, height, width, words;  // of the output
  std::vector<float> weight;
  Framed input, before, residual;
  Aligned scale, bias;
  float low = -kInfinity, high = kInfinity;
  bool add = false;
  std::mt19937 random;

  Problem(const ConvShape& s, int n, int h, int w, int groups)
      : shape(s), images(n), decisions(groups), height(output_size(h, s, 0)), width(output_size(w, s, 1)),
        words(padded_channels(s.out_channels) / kLanes),
        weight(s.out_channels * s.in_channels * s.kernel[0] * s.kernel[1]),
        input(n, s.in_channels, h, w, std::max(s.padding[0], s.padding[1]) + 1, 0.0f),
        before(n, s.out_channels, height, width, 2, poison()), residual(n, s.out_channels, height, width, 1, poison()),
        scale(padded_channels(s.out_channels), 0.0f), bias(padded_channels(s.out_channels), 0.0f),
        random(s.in_channels + 7 * s.out_channels + 100 * h + w) {
    std::normal_distribution<float> normal;
    for (float& v : weight) v = normal(random);
    input.fill(random);
    before.fill(random);
    residual.fill(random);
    for (int c = 0; c < s.out_channels; ++c) {
      scale.data()[c] = normal(random);
      bias.data()[c] = normal(random);
    }
  }

  std::int64_t pixels() const { return std::int64_t{images} * height * width; }

  Masks masks(double density) {
    Masks m(pixels() * words);
    std::bernoulli_distribution open(density);
    const int group = shape.out_channels / decisions;
    for (std::int64_t p = 0; p < pixels(); ++p) {
      for (int d = 0; d < decisions; ++d) {
        if (!open(random)) continue;
        for (int c = d * group; c < (d + 1) * group; ++c) m[p * words + c / kLanes] |= 1u << c % kLanes;
      }
    }
    return m;
  }
};

struct Part {
  std::int64_t begin, end;
  int first_row, last_row, first_channel, last_channel;
};

Part everything(const Problem& p) { return {0, p.images, 0, p.height, 0, p.shape.out_channels}; }

// The whole output's memory, frame included, after the parts were run.
std::vector<float> run(Problem& p, const ConditionalKernels& k, const Masks& masks, const std::vector<Part>& parts) {
  Framed output(p.images, p.shape.out_channels, p.height, p.width, 2, 0.0f);
  std::copy_n(p.before.begin(), p.before.size(), output.begin());
  Aligned packed(k.packed_size(p.shape, p.decisions), poison());
  k.pack(p.shape, p.decisions, p.weight.data(), packed.data());
  const std::int64_t scratch_floats = k.scratch_bytes(p.shape, p.input.map(), output.map()) / sizeof(float);
  for (const Part& part : parts) {
    Aligned scratch(scratch_floats + kLanes, poison());
    k.run({&p.shape, packed.data(), p.input.map(), output.map(), p.scale.data(), p.bias.data(), p.low, p.high,
           p.add ? &p.residual.map() : nullptr, masks.data(), p.decisions, part.begin, part.end, part.first_row,
           part.last_row, part.first_channel, part.last_channel, scratch.data()});
    for (int i = 0; i < kLanes; ++i) CHECK(poisoned(scratch.data()[scratch_floats + i]));
  }
  return {output.begin(), output.begin() + output.size()};
}

double worst = 0;  // error in units of its bound
long outputs = 0;

// Open outputs against the reference; everything else must be as before, bit for bit.
void check(Problem& p, const RestSums& sums, const Masks& masks, const std::vector<float>& result) {
  std::vector<float> expected(p.before.begin(), p.before.begin() + p.before.size());
  const int taps = p.shape.kernel[0] * p.shape.kernel[1];
  const double terms = double(p.shape.in_channels) * taps + 4;
  for (std::int64_t i = 0; i < p.pixels(); ++i) {
    const int image = i / (p.height * p.width), y = i / p.width % p.height, x = i % p.width;
    float* before = p.before.at(image, y, x);
    for (int c = 0; c < p.shape.out_channels; ++c) {
      if (!(masks[i * p.words + c / kLanes] >> c % kLanes & 1)) continue;
      const double scale = p.scale.data()[c], bias = p.bias.data()[c], sum = sums.sum[i * p.shape.out_channels + c];
      const double residual = p.add ? p.residual.at(image, y, x)[c] : 0;
      const double want = std::clamp<double>((before[c] + sum) * scale + bias + residual, p.low, p.high);
      const double magnitude = sums.magnitude[i * p.shape.out_channels + c] + std::abs(before[c]);
      const double bound =
          1.01 * kUnit * (terms * std::abs(scale) * magnitude + 3 * (std::abs(bias) + std::abs(residual)));
      const std::int64_t at = &before[c] - p.before.begin();
      const double error = std::abs(result[at] - want);
      CHECK(error <= bound);
      worst = std::max(worst, error / bound);
      ++outputs;
      expected[at] = result[at];
    }
  }
  CHECK(std::memcmp(expected.data(), result.data(), expected.size() * sizeof(float)) == 0);
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void check_all(const ConvShape& shape, int images, int height, int width, int groups) {
  for (bool group : {false, true}) {
    Problem p(shape, images, height, width, group ? groups : shape.out_channels);
    const RestSums sums = conditional_reference(shape, p.weight.data(), p.input.map(), images, p.height, p.width);
    for (double density : {0.0, 0.06, 0.4, 1.0}) {
      const Masks masks = p.masks(density);
      p.add = !p.add;
      p.low = density == 0.4 ? -1.0f : -kInfinity;
      p.high = density == 0.4 ? 6.0f : kInfinity;
      for (Isa isa : isas()) check(p, sums, masks, run(p, kernels(isa, group), masks, {everything(p)}));
    }
  }
}

TEST(sizes_around_the_tile) {
  for (int size : {1, 2, 4, 5, 7, 8, 9, 13, 16, 17}) check_all(shape_of(16, 16, 4, Lists::shuffled), 1, size, size, 4);
  for (int width : {1, 7, 31, 63, 64, 65}) check_all(shape_of(32, 16, 2, Lists::contiguous), 1, 1, width, 2);
  for (int height : {31, 64, 65}) check_all(shape_of(32, 16, 2, Lists::contiguous), 1, height, 1, 2);
  check_all(shape_of(24, 24, 4, Lists::contiguous), 1, 11, 23, 4);
  check_all(shape_of(16, 16, 4, Lists::contiguous), 2, 25, 23, 4);  // more pixels than group gates take at once
}

TEST(batches) {
  for (int images = 1; images <= 33; ++images) check_all(shape_of(12, 8, 2, Lists::contiguous), images, 3, 2, 2);
  for (int images : {1, 2, 5, 33}) {
    check_all(shape_of(32, 16, 4, Lists::contiguous), images, 4, 4, 4);
    check_all(shape_of(80, 16, 4, Lists::shuffled), images, 3, 5, 4);
  }
  for (int images : {2, 5}) check_all(shape_of(16, 16, 4, Lists::contiguous), images, 7, 9, 4);
}

TEST(block_structures) {
  for (Lists lists : {Lists::contiguous, Lists::shuffled}) {
    for (int blocks : {1, 2, 4, 8}) {
      check_all(shape_of(64, 64, blocks, lists), 1, 6, 6, blocks);
      check_all(shape_of(136, 32, blocks, lists), 1, 5, 5, blocks);
    }
  }
  check_all(shape_of(256, 64, 4, Lists::contiguous), 1, 5, 5, 4);  // whole blocks of planes fall away
  check_all(first_inputs(64, 32, 16), 1, 6, 6, 4);
  check_all(first_inputs(72, 24, 9), 2, 6, 6, 3);
  check_all(first_inputs(320, 16, 80, 1), 2, 6, 6, 2);
}

TEST(kernels_strides_and_dilations) {
  const Lists lists = Lists::contiguous;
  for (int channels : {16, 48}) {
    check_all(shape_of(channels, 16, 2, lists, 1, 1, 1, 1, 0, 0), 2, 9, 9, 2);
    check_all(shape_of(channels, 16, 2, lists, 1, 1, 2, 2, 0, 0), 1, 17, 18, 2);
    check_all(shape_of(channels, 16, 2, lists, 1, 1, 3, 1, 1, 0), 1, 10, 9, 2);
    check_all(shape_of(channels, 16, 2, lists, 3, 3, 2, 2), 1, 19, 20, 2);
    check_all(shape_of(channels, 16, 2, lists, 3, 3, 3, 2, 0, 1), 1, 19, 20, 2);
    check_all(shape_of(channels, 16, 2, lists, 3, 3, 1, 1, 2, 2, 2, 2), 1, 10, 11, 2);
    check_all(shape_of(channels, 16, 2, lists, 3, 3, 2, 1, 3, 2, 3, 2), 1, 10, 11, 2);
    check_all(shape_of(channels, 16, 2, lists, 5, 5, 1, 1, 2, 2), 1, 9, 10, 2);
    check_all(shape_of(channels, 16, 2, lists, 1, 7, 1, 1, 0, 3), 1, 9, 10, 2);
    check_all(shape_of(channels, 16, 2, lists, 7, 1, 1, 1, 3, 0), 1, 9, 10, 2);
    check_all(shape_of(channels, 16, 2, lists, 2, 4, 2, 3, 1, 0), 1, 9, 13, 2);
    check_all(shape_of(channels, 16, 2, lists, 6, 5, 1, 1, 0, 0), 3, 6, 5, 2);
  }
}

TEST(groups_of_any_size) {
  for (int size : {1, 2, 3, 4, 5, 7, 8, 11, 12, 16, 24}) {
    check_all(shape_of(40, 4 * size, 4, Lists::contiguous), 1, 6, 7, 4);
    check_all(shape_of(80, 2 * size, 2, Lists::shuffled), 1, 5, 5, 2);
  }
  check_all(shape_of(32, 96, 4, Lists::contiguous), 1, 5, 5, 2);  // a group of several blocks
  check_all(shape_of(32, 96, 2, Lists::contiguous), 1, 5, 5, 12);
}

TEST(channels_that_are_no_multiples) {
  for (int in : {1, 3, 15, 17, 65, 130}) check_all(shape_of(in, 10, 1, Lists::contiguous), 1, 5, 6, 5);
  for (int out : {1, 7, 17, 33, 65}) check_all(first_inputs(20, out, 5), 1, 5, 6, 1);
}

// A result depends neither on what is computed beside it, nor on how the work is cut.
TEST(same_bits_however_the_work_is_cut) {
  struct Case {
    ConvShape shape;
    int images, size;
  };
  for (const Case& test : {Case{shape_of(16, 32, 4, Lists::shuffled), 3, 12},
                           Case{shape_of(160, 72, 4, Lists::contiguous), 3, 9},
                           Case{shape_of(96, 160, 8, Lists::contiguous), 7, 4},
                           Case{shape_of(80, 32, 4, Lists::contiguous, 3, 3, 2, 2), 5, 13},
                           Case{shape_of(48, 32, 4, Lists::contiguous, 1, 1, 1, 1, 0, 0), 3, 10}}) {
    for (bool group : {false, true}) {
      const int out = test.shape.out_channels;
      Problem p(test.shape, test.images, test.size, test.size, group ? out / 4 : out);
      const Masks masks = p.masks(0.5);
      for (Isa isa : isas()) {
        const ConditionalKernels& k = kernels(isa, group);
        const std::vector<float> whole = run(p, k, masks, {everything(p)});
        const int cut = p.height / 3, low = 4, high = out - 12;
        CHECK(same(whole, run(p, k, masks, {{2, p.images, 0, p.height, 0, out}, {0, 2, 0, p.height, 0, out}})));
        CHECK(same(whole, run(p, k, masks, {{0, p.images, 0, cut, 0, out}, {0, p.images, cut, p.height, 0, out}})));
        CHECK(same(whole, run(p, k, masks, {{0, p.images, 0, p.height, high, out}, {0, p.images, 0, p.height, 0, low},
                                            {0, p.images, 0, p.height, low, high}})));
        std::vector<Part> images;
        for (int i = p.images; i-- > 0;) images.push_back({i, i + 1, 0, p.height, 0, out});
        CHECK(same(whole, run(p, k, masks, images)));
        CHECK(same(run(p, k, masks, {}), run(p, k, masks, {{1, 1, 0, p.height, 0, out}, {0, 1, 2, 2, 0, out}})));

        for (double density : {0.03, 0.2, 0.9}) {
          Masks fewer = p.masks(density);
          for (std::size_t i = 0; i < masks.size(); ++i) fewer[i] &= masks[i];
          const std::vector<float> some = run(p, k, fewer, {everything(p)});
          bool equal = true;
          for (std::int64_t i = 0; i < p.pixels(); ++i) {
            const int image = i / (p.height * p.width), y = i / p.width % p.height, x = i % p.width;
            for (int c = 0; c < out; ++c) {
              const std::int64_t at = p.before.at(image, y, x) + c - p.before.begin();
              const bool open = fewer[i * p.words + c / kLanes] >> c % kLanes & 1;
              equal &= same_bits(some[at], open ? whole[at] : p.before.begin()[at]);
            }
          }
          CHECK(equal);
        }
      }
    }
  }
}

TEST(nan_stays_nan_and_infinities_are_clamped) {
  for (bool group : {false, true}) {
    Problem p(first_inputs(32, 16, 8), 1, 5, 5, group ? 2 : 16);
    p.low = 0.0f;
    p.high = 6.0f;
    p.before.at(0, 2, 2)[3] = std::numeric_limits<float>::quiet_NaN();
    p.before.at(0, 2, 3)[3] = kInfinity;
    p.input.at(0, 0, 0)[20] = std::numeric_limits<float>::quiet_NaN();
    const Masks masks = p.masks(1.0);
    for (Isa isa : isas()) {
      const std::vector<float> result = run(p, kernels(isa, group), masks, {everything(p)});
      const auto at = [&](int y, int x, int c) { return result[p.before.at(0, y, x) + c - p.before.begin()]; };
      CHECK(std::isnan(at(2, 2, 3)));
      CHECK(at(2, 3, 3) == (p.scale.data()[3] > 0 ? 6.0f : 0.0f));
      CHECK(!std::isnan(at(2, 2, 4)));
      CHECK(std::isnan(at(1, 1, 0)) && std::isnan(at(0, 0, 15)));
    }
  }
}

// What the base path read counts for nothing, though vectors may hold it beside what is read here: not even infinity
// times zero.
TEST(infinities_of_the_base_block_are_left_out) {
  const ConvShape shapes[] = {first_inputs(32, 16, 8),
                              first_inputs(40, 24, 9),
                              shape_of(16, 16, 4, Lists::contiguous),
                              shape_of(16, 16, 4, Lists::shuffled),
                              shape_of(64, 64, 8, Lists::shuffled),
                              shape_of(160, 32, 4, Lists::shuffled, 3, 1, 1, 1, 1, 0),
                              shape_of(64, 64, 2, Lists::contiguous)};
  for (const ConvShape& shape : shapes) {
    for (bool group : {false, true}) {
      Problem p(shape, 2, 5, 5, group ? 4 : shape.out_channels);
      const Masks masks = p.masks(1.0);
      const int input = shape.inputs[0];
      const float finite = p.input.at(1, 2, 2)[input];
      for (Isa isa : isas()) {
        const std::vector<float> without = run(p, kernels(isa, group), masks, {everything(p)});
        p.input.at(1, 2, 2)[input] = kInfinity;
        const std::vector<float> with = run(p, kernels(isa, group), masks, {everything(p)});
        p.input.at(1, 2, 2)[input] = finite;
        bool left_out = true, infinite = true;
        for (int image = 0; image < p.images; ++image) {
          for (int y = 0; y < p.height; ++y) {
            for (int x = 0; x < p.width; ++x) {
              const bool reads =
                  image == 1 && std::abs(y - 2) <= shape.padding[0] && std::abs(x - 2) <= shape.padding[1];
              for (int c = 0; c < shape.out_channels; ++c) {
                const std::int64_t at = p.before.at(image, y, x) + c - p.before.begin();
                const bool base = c * shape.blocks / shape.out_channels == 0;
                if (!reads || base) left_out &= with[at] == without[at];
                if (reads && !base) infinite &= std::isinf(with[at]);
              }
            }
          }
        }
        CHECK(left_out);
        CHECK(infinite);
      }
    }
  }
}

TEST(errors_stay_below_their_bounds) {
  std::printf("%ld open outputs compared, the worst at %.3f of its bound\n", outputs, worst);
  CHECK(outputs > 0 && worst < 1);
}

}  // namespace
}  // namespace headgate
