#include "kernels/depthwise/depthwise.h"

#include <algorithm>
#include <cstdio>
#include <string>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "kernels/conv/conv_reference.h"
#include "tests/check.h"
#include "tests/framed.h"
#include "tests/isas.h"

namespace headgate {
namespace {

constexpr double kUnit = 0x1p-24;

const DepthwiseKernels& kernels(Isa isa) { return kernel_set(isa).depthwise; }

// One convolution with all that it reads, and the sums that it should find.
struct Problem {
  DepthwiseShape shape;
  int images, height, width, words;
  std::vector<float> weight, scale, bias;
  Framed input, residual;
  ConvSums sums;

  static int out_size(const DepthwiseShape& s, int axis, int size) {
    return (size + 2 * s.padding[axis] - s.dilation[axis] * (s.kernel[axis] - 1) - 1) / s.stride[axis] + 1;
  }

  Problem(const DepthwiseShape& s, int images_, int in_height, int in_width, unsigned seed = 1)
      : shape(s), images(images_), height(out_size(s, 0, in_height)), width(out_size(s, 1, in_width)),
        words(padded_channels(s.channels) / kLanes), weight(s.channels * s.kernel[0] * s.kernel[1]),
        scale(padded_channels(s.channels)), bias(scale.size()),
        input(images_, s.channels, in_height, in_width, std::max(s.padding[0], s.padding[1]) + seed % 2, 0.0f),
        residual(images_, s.channels, height, width, seed % 3, 0.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    for (float& w : weight) w = normal(random);
    for (int c = 0; c < s.channels; ++c) scale[c] = normal(random), bias[c] = normal(random);
    input.fill(random);
    residual.fill(random);
    ConvShape grouped{s.channels, s.channels, {s.kernel[0], s.kernel[1]}, {s.stride[0], s.stride[1]},
                      {s.padding[0], s.padding[1]}, {s.dilation[0], s.dilation[1]}, s.channels, 1, {}};
    for (int c = 0; c < s.channels; ++c) grouped.inputs.push_back(c);
    sums = conv_reference(grouped, weight.data(), input.map(), images, height, width);
  }

  std::int64_t pixels() const { return std::int64_t{images} * height * width; }
};

struct Part {
  std::int64_t begin, end;
  int first_vector, last_vector;
};

constexpr float kLow = -0.5f, kHigh = 2.0f;

void run(const DepthwiseKernels& kernels, const Problem& p, bool with_residual, const std::vector<Part>& parts,
         Framed& output) {
  Aligned packed(kernels.packed_size(p.shape), poison());
  kernels.pack(p.shape, p.weight.data(), packed.data());
  for (const Part& part : parts) {
    kernels.run({&p.shape, packed.data(), p.input.map(), output.map(), p.scale.data(), p.bias.data(), kLow, kHigh,
                 with_residual ? &p.residual.map() : nullptr, part.begin, part.end, part.first_vector,
                 part.last_vector});
  }
}

Framed poisoned_output(const Problem& p) {
  return Framed(p.images, p.shape.channels, p.height, p.width, 1, poison());
}

std::string problem_with(const Problem& p, bool with_residual, const Part& part, Framed& output) {
  std::int64_t written = 0;
  for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const int image = pixel / (p.height * p.width), y = pixel / p.width % p.height, x = pixel % p.width;
    const float* out = output.at(image, y, x);
    for (int c = part.first_vector * kLanes; c < part.last_vector * kLanes; ++c) {
      if (pixel < part.begin || pixel >= part.end) continue;
      ++written;
      double expected = 0, tolerance = 0;
      if (c < p.shape.channels) {
        const std::int64_t at = pixel * p.shape.channels + c;
        const double scaled = p.sums.sum[at] * p.scale[c];
        const double r = with_residual ? pixel_at(p.residual.map(), image, y, x)[c] : 0.0f;
        const int taps = p.shape.kernel[0] * p.shape.kernel[1];
        expected = std::clamp(scaled + p.bias[c] + r, double{kLow}, double{kHigh});
        tolerance = 1.01 * kUnit * (taps + 1) * p.sums.magnitude[at] * std::abs(p.scale[c]) +
                    4 * kUnit * (std::abs(scaled) + std::abs(p.bias[c]) + std::abs(r));
      }
      if (!(std::abs(out[c] - expected) <= tolerance)) {
        return "image " + std::to_string(image) + " y " + std::to_string(y) + " x " + std::to_string(x) + " channel " +
               std::to_string(c) + " is " + std::to_string(out[c]) + ", not " + std::to_string(expected);
      }
    }
  }
  for (std::int64_t i = 0; i < output.size(); ++i) written -= !poisoned(output.begin()[i]);
  return written == 0 ? "" : "memory outside was touched";
}

int checked = 0;

void check(const DepthwiseShape& s, int images, int in_height, int in_width, unsigned seed = 1) {
  const Problem p(s, images, in_height, in_width, seed);
  const std::int64_t n = p.pixels();
  for (Isa isa : isas()) {
    for (bool with_residual : {false, true}) {
      for (const Part& part : {Part{0, n, 0, p.words}, Part{n / 3, n - n / 5, p.words / 3, p.words}}) {
        Framed output(p.images, s.channels, p.height, p.width, 1, poison());
        run(kernels(isa), p, with_residual, {part}, output);
        const std::string problem = problem_with(p, with_residual, part, output);
        if (!problem.empty()) {
          std::printf("%s, %d channels, kernel %dx%d, stride %dx%d: %s\n", name(isa), s.channels, s.kernel[0],
                      s.kernel[1], s.stride[0], s.stride[1], problem.c_str());
        }
        CHECK(problem.empty());
        ++checked;
      }
    }
  }
}

TEST(channels) {
  for (int channels : {1, 3, 8, 15, 16, 17, 31, 32, 33, 37, 96}) {
    check({channels, {3, 3}, {1, 1}, {1, 1}, {1, 1}}, 2, 5, 7, channels);
    check({channels, {5, 5}, {2, 2}, {2, 2}, {1, 1}}, 1, 6, 5, channels);
  }
}

TEST(pixels) {
  for (int width : {1, 2, 5, 6, 7, 11, 12, 13, 14, 15, 27, 28, 29, 31}) {
    for (int taps : {1, 3, 5, 7}) {
      for (int stride : {1, 2}) check({20, {3, taps}, {1, stride}, {1, taps / 2}, {1, 1}}, 1, 2, width, width);
    }
  }
}

TEST(batches) {
  for (int images = 1; images <= 33; ++images) check({24, {3, 3}, {1, 1}, {1, 1}, {1, 1}}, images, 3, 4, images);
}

TEST(windows_of_the_map) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 200; ++trial) {
    const auto one_of = [&](std::initializer_list<int> values) { return values.begin()[random() % values.size()]; };
    const int kh = one_of({1, 2, 3, 5, 7}), kw = one_of({1, 2, 3, 3, 5, 7}), dh = one_of({1, 1, 2}),
              dw = one_of({1, 1, 2, 3});
    const int ph = random() % (dh * (kh - 1) + 1), pw = random() % (dw * (kw - 1) + 1);
    check({one_of({7, 16, 40}), {kh, kw}, {one_of({1, 2, 3}), one_of({1, 2, 3})}, {ph, pw}, {dh, dw}}, one_of({1, 2}),
          dh * (kh - 1) + 1 + random() % 6, dw * (kw - 1) + 1 + random() % 6, trial);
  }
}

// An output's bits depend on its own inputs alone.
TEST(order_of_sums) {
  std::mt19937 random(5);
  for (const DepthwiseShape& s : {DepthwiseShape{48, {3, 3}, {1, 1}, {1, 1}, {1, 1}},
                                  DepthwiseShape{20, {5, 5}, {2, 2}, {2, 2}, {1, 1}},
                                  DepthwiseShape{17, {3, 7}, {1, 1}, {1, 3}, {1, 1}}}) {
    const Problem p(s, 3, 9, 31);
    for (Isa isa : isas()) {
      Framed whole = poisoned_output(p), split = poisoned_output(p);
      run(kernels(isa), p, true, {{0, p.pixels(), 0, p.words}}, whole);
      std::vector<Part> parts;
      for (int vector = 0; vector < p.words; ++vector) {
        for (std::int64_t pixel = 0; pixel < p.pixels();) {
          const std::int64_t end = std::min<std::int64_t>(p.pixels(), pixel + 1 + random() % 30);
          parts.push_back({pixel, end, vector, vector + 1});
          pixel = end;
        }
      }
      run(kernels(isa), p, true, parts, split);
      CHECK(std::memcmp(whole.begin(), split.begin(), whole.size() * sizeof(float)) == 0);
    }
  }
}

TEST(not_a_number) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Problem p({21, {3, 3}, {1, 1}, {1, 1}, {1, 1}}, 1, 3, 3);
    p.input.at(0, 1, 1)[20] = bad;
    for (Isa isa : isas()) {
      Framed output = poisoned_output(p);
      run(kernels(isa), p, false, {{0, 9, 0, 2}}, output);
      for (int c = 0; c < 32; ++c) {
        const float value = output.at(0, 2, 2)[c];
        if (c == 20) {
          CHECK(std::isnan(value) == std::isnan(bad));
        } else {
          CHECK(c < 21 ? std::isfinite(value) : same_bits(value, 0.0f));
        }
      }
    }
  }
}

TEST(every_result_was_checked) {
  std::printf("%d results checked\n", checked);
  CHECK(checked >= 1000);
}

}  // namespace
}  // namespace headgate
