#include "kernels/conv/conv.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <numeric>
#include <string>
#include <utility>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "kernels/conv/conv_reference.h"
#include "tests/check.h"
#include "tests/conv_problem.h"
#include "tests/framed.h"
#include "tests/isas.h"

namespace headgate {
namespace {

constexpr double kUnit = 0x1p-24, kInfinity = std::numeric_limits<double>::infinity();

const ConvKernels& kernels(Isa isa) { return kernel_set(isa).conv; }

struct Result {
  Framed output;
  std::vector<std::uint16_t> masks;

  explicit Result(const Problem& p)
      : output(p.images, p.shape.out_channels, p.height, p.width, 1, poison()), masks(p.pixels() * p.words, 0xbeef) {}
};

struct Part {
  std::int64_t begin, end;
  int first_vector, last_vector;
};

void run(const ConvKernels& kernels, const Problem& p, ConvEpilogue epilogue, const std::vector<Part>& parts,
         Result& result) {
  Aligned packed(kernels.packed_size(p.shape), poison());
  kernels.pack(p.shape, p.weight.data(), packed.data());
  if (epilogue.kind == Epilogue::gate || epilogue.kind == Epilogue::masked) epilogue.masks = result.masks.data();
  for (const Part& part : parts) {
    kernels.run({&p.shape, packed.data(), p.input.map(), result.output.map(), epilogue, part.begin, part.end,
                 part.first_vector, part.last_vector});
  }
}

// What is wrong with the result of `part` alone, or nothing; counts decisions that rounding leaves open.
std::string problem_with(const Problem& p, const ConvEpilogue& e, const Part& part, Result& result,
                         const std::vector<std::uint16_t>& masks_before, int* undecided) {
  std::int64_t written = 0;
  for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
    const int image = pixel / (p.height * p.width), y = pixel / p.width % p.height, x = pixel % p.width;
    const float* out = result.output.at(image, y, x);
    for (int c = 0; c < p.words * kLanes; ++c) {
      const auto wrong = [&](const char* what, double expected) {
        return std::string(what) + ": image " + std::to_string(image) + " y " + std::to_string(y) + " x " +
               std::to_string(x) + " channel " + std::to_string(c) + " is " + std::to_string(out[c]) + ", not " +
               std::to_string(expected);
      };
      const std::int64_t word = pixel * p.words + c / kLanes;
      const bool bit = result.masks[word] >> (c % kLanes) & 1;
      const bool inside = pixel >= part.begin && pixel < part.end && c / kLanes >= part.first_vector &&
                          c / kLanes < part.last_vector;
      if ((e.kind != Epilogue::gate || !inside) && result.masks[word] != masks_before[word]) return wrong("mask", 0);
      if (!inside || (e.kind == Epilogue::masked && !bit)) {
        if (!poisoned(out[c])) return wrong("touched", 0);
        continue;
      }
      ++written;
      if (c >= p.shape.out_channels) {
        if (!same_bits(out[c], 0.0f)) return wrong("padding", 0);
        if (e.kind == Epilogue::gate && bit) return wrong("mask of padding", 0);
        continue;
      }
      const std::int64_t at = pixel * p.shape.out_channels + c;
      const double sum = p.sums.sum[at], bound = 1.01 * kUnit * (p.macs() + 1) * p.sums.magnitude[at];
      bool raw = e.kind == Epilogue::raw;
      if (e.kind == Epilogue::gate) {
        double score = 0, band = 0, scores = 0;
        for (int i = c - c % e.group_size; i < c - c % e.group_size + e.group_size; ++i) {
          const double scaled = p.sums.sum[at - c + i] * e.score_scale[i], n = scaled + e.score_bias[i];
          const double own = e.two_sided ? e.center - std::abs(n) : n;
          const double error = 1.01 * kUnit * (p.macs() + 1) * p.sums.magnitude[at - c + i];
          score += own, scores += std::abs(own);
          band += std::abs(e.score_scale[i]) * error +
                  4 * kUnit * (std::abs(scaled) + std::abs(e.score_bias[i]) + std::abs(own));
        }
        if (e.gain != nullptr) {
          score *= e.gain[c], band = std::abs(e.gain[c]) * (band + kUnit * (e.group_size + 1) * scores);
        }
        if (std::abs(score - e.threshold[c]) <= band) {
          ++*undecided;
        } else if (bit != (score > e.threshold[c])) {
          return wrong("decision", score);
        }
        raw = bit;
      }
      double expected = sum, tolerance = bound;
      if (!raw) {
        const double r = e.residual == nullptr ? 0.0 : pixel_at(*e.residual, image, y, x)[c];
        const double y_exact = sum * e.scale[c] + e.bias[c] + r;
        expected = std::clamp(y_exact, double{e.low}, double{e.high});
        tolerance = std::abs(e.scale[c]) * bound +
                    4 * kUnit * (std::abs(sum * e.scale[c]) + std::abs(e.bias[c]) + std::abs(r));
      }
      if (!(std::abs(out[c] - expected) <= tolerance)) return wrong("value", expected);
    }
  }
  for (std::int64_t i = 0; i < result.output.size(); ++i) written -= !poisoned(result.output.begin()[i]);
  return written == 0 ? "" : "the frame was touched";
}

// Every epilogue, over the whole and over an odd part.
int checked = 0, decisions = 0, undecided = 0;

void check(const Problem& p, const char* what) {
  std::mt19937 random(7);
  const std::int64_t n = p.pixels();
  const Part whole{0, n, 0, p.words}, part{n / 3, n - n / 5, p.words / 3, p.words};
  for (Isa isa : isas()) {
    for (int variant = 0; variant < 10; ++variant) {
      const Epilogue kind = variant < 2    ? Epilogue::plain
                            : variant < 3  ? Epilogue::raw
                            : variant == 6 ? Epilogue::masked
                                           : Epilogue::gate;
      const int most = variant == 9 ? 1 : kernels(isa).lanes;
      const ConvEpilogue e = variant < 7 ? p.epilogue(kind, variant % 2 == 1, variant == 5)
                                         : p.groups(most, variant % 2 == 1, variant == 7);
      for (const Part& range : {whole, part}) {
        Result result(p);
        if (kind == Epilogue::masked) {
          for (auto& word : result.masks) word = random() % 3 != 0 ? 0 : random();
          for (std::int64_t i = 0; i < n; ++i) {
            if (p.shape.out_channels % kLanes != 0) {
              result.masks[(i + 1) * p.words - 1] &= (1 << p.shape.out_channels % kLanes) - 1;
            }
          }
        }
        const std::vector<std::uint16_t> before = result.masks;
        run(kernels(isa), p, e, {range}, result);
        const std::string problem = problem_with(p, e, range, result, before, &undecided);
        if (!problem.empty()) {
          const ConvShape& s = p.shape;
          std::printf("%s, %s, epilogue %d: in %d out %d blocks %d kernel %dx%d stride %dx%d: %s\n", what, name(isa),
                      variant, s.in_channels, s.out_channels, s.blocks, s.kernel[0], s.kernel[1], s.stride[0],
                      s.stride[1], problem.c_str());
        }
        CHECK(problem.empty());
        ++checked;
        if (kind == Epilogue::gate) decisions += (range.end - range.begin) * p.shape.out_channels;
      }
    }
  }
}

TEST(channels) {
  for (int in : {1, 3, 15, 16, 17, 37}) {
    for (int out : {1, 8, 15, 16, 17, 31, 32, 33, 37, 64, 71}) {
      check(Problem(shape_of(in, out, 1, Lists::contiguous), 1, 5, 7, in + out), "channels");
    }
  }
}

TEST(pixels) {
  for (int width : {1, 2, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 27, 28, 29, 31}) {
    for (int out : {16, 32, 64}) {
      check(Problem(shape_of(4, out, 1, Lists::contiguous), 1, 1, width, width), "one row");
      check(Problem(shape_of(4, out, 1, Lists::contiguous, 1, 1, 1, 1, 0, 0), 1, width, 1, width), "one column");
    }
    check(Problem(shape_of(16, 16, 4, Lists::shuffled), 1, 2, width, width), "narrow");
  }
}

TEST(batches) {
  for (int images = 1; images <= 33; ++images) {
    check(Problem(shape_of(5, 20, 1, Lists::contiguous), images, 2, 3, images), "batch");
  }
  for (int images : {1, 2, 5, 33}) {
    check(Problem(shape_of(16, 32, 1, Lists::contiguous), images, 4, 4, images), "batch");
    check(Problem(shape_of(32, 32, 4, Lists::shuffled), images, 3, 5, images), "batch");
    check(Problem(shape_of(19, 23, 1, Lists::any), images, 1, 1, images), "batch");
  }
}

// A group whose score is no number stays closed, and so does none beside it.
TEST(not_a_number_in_a_group) {
  Problem p(shape_of(16, 16, 4, Lists::contiguous, 1, 1, 1, 1, 0, 0), 1, 3, 3, 1);
  const ConvEpilogue e = p.groups(4, false, false);
  const Part whole{0, p.pixels(), 0, p.words};
  for (Isa isa : isas()) {
    Result clean(p), spoilt(p);
    run(kernels(isa), p, e, {whole}, clean);
    float& value = p.input.at(0, 1, 1)[5];
    const float before = std::exchange(value, std::numeric_limits<float>::quiet_NaN());
    run(kernels(isa), p, e, {whole}, spoilt);
    value = before;
    for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
      const int of_block = pixel == 4 ? 0x00f0 : 0;
      CHECK_EQ(spoilt.masks[pixel], clean.masks[pixel] & ~of_block);
      for (int c = 0; c < 16; ++c) {
        const float was = clean.output.at(0, pixel / 3, pixel % 3)[c], is = spoilt.output.at(0, pixel / 3, pixel % 3)[c];
        CHECK(of_block >> c & 1 ? std::isnan(is) : same_bits(was, is));
      }
    }
  }
}

// Weights too large for the cache are walked through in another order.
TEST(wide) {
  for (int images : {1, 5}) {
    check(Problem(shape_of(256, 208, 1, Lists::contiguous), images, 2, 2, images), "wide");
    check(Problem(shape_of(512, 384, 2, Lists::shuffled, 1, 2), images, 2, 3, images), "wide groups");
  }
  check(Problem(shape_of(300, 1000, 1, Lists::contiguous, 1, 1, 1, 1, 0, 0), 1, 1, 1), "linear");
}

TEST(groups) {
  for (Lists lists : {Lists::contiguous, Lists::shuffled, Lists::any}) {
    for (const auto& [in, out, blocks] : std::vector<std::array<int, 3>>{
             {16, 16, 4},  {32, 32, 4},   {64, 64, 8},  {64, 64, 4},  {128, 128, 8}, {16, 16, 16}, {64, 16, 4},
             {256, 64, 8}, {16, 64, 4},   {8, 24, 8},   {24, 72, 3},  {20, 60, 5},   {6, 6, 2},    {12, 40, 4},
             {96, 96, 6},  {64, 128, 2},  {40, 80, 2},  {9, 27, 9},   {36, 12, 3},   {7, 7, 7}}) {
      check(Problem(shape_of(in, out, blocks, lists), 2, 4, 5, in + blocks), "3x3");
      check(Problem(shape_of(in, out, blocks, lists, 1, 1, 1, 1, 0, 0), 2, 4, 5, in + blocks), "1x1");
      check(Problem(shape_of(in, out, blocks, lists, 3, 3, 2, 2), 2, 5, 4, in + blocks), "stride 2");
    }
  }
}

TEST(windows_of_the_map) {
  std::mt19937 random(3);
  const auto one_of = [&](std::initializer_list<int> values) { return values.begin()[random() % values.size()]; };
  for (int trial = 0; trial < 150; ++trial) {
    const int blocks = one_of({1, 1, 2, 4, 8});
    const int kh = one_of({1, 2, 3, 5, 7}), kw = one_of({1, 2, 3, 3, 5, 7});
    const int dh = one_of({1, 1, 2}), dw = one_of({1, 1, 2, 3});
    const ConvShape shape = shape_of(blocks * one_of({1, 2, 4, 7}), blocks * one_of({2, 4, 8, 16, 19}), blocks,
                                     static_cast<Lists>(random() % 3), kh, kw, one_of({1, 1, 2, 3}),
                                     one_of({1, 1, 2, 3}), random() % (dh * (kh - 1) + 1),
                                     random() % (dw * (kw - 1) + 1),
                                     dh, dw);
    const int height = dh * (kh - 1) + 1 + random() % 6, width = dw * (kw - 1) + 1 + random() % 6;
    check(Problem(shape, one_of({1, 2, 5}), height, width, trial), "window");
  }
}

// An output's bits depend on its own inputs alone: not on the range, its splits, the batch or the place in it.
TEST(order_of_sums) {
  std::mt19937 random(11);
  const std::vector<ConvShape> shapes = {
      shape_of(16, 64, 1, Lists::contiguous), shape_of(64, 80, 1, Lists::contiguous),
      shape_of(16, 16, 1, Lists::contiguous), shape_of(64, 64, 8, Lists::shuffled),
      shape_of(64, 64, 4, Lists::contiguous), shape_of(16, 16, 4, Lists::shuffled),
      shape_of(64, 16, 4, Lists::contiguous), shape_of(32, 96, 2, Lists::any),
      shape_of(32, 64, 8, Lists::shuffled, 3, 3, 2, 2), shape_of(48, 144, 1, Lists::contiguous, 1, 1, 1, 1, 0, 0)};
  for (const ConvShape& shape : shapes) {
    Problem p(shape, 5, 7, 17), last(shape, 1, 7, 17);
    last.weight = p.weight;
    std::copy_n(p.input.begin() + 4 * last.input.size(), last.input.size(), last.input.begin());
    for (Isa isa : isas()) {
      Result whole(p), split(p), alone(last), masked(p);
      run(kernels(isa), p, p.epilogue(Epilogue::raw, false), {{0, p.pixels(), 0, p.words}}, whole);
      std::vector<Part> parts;
      for (int vector = 0; vector < p.words;) {
        const int next = std::min<int>(p.words, vector + 1 + random() % 4);
        for (std::int64_t pixel = 0; pixel < p.pixels();) {
          const std::int64_t end = std::min<std::int64_t>(p.pixels(), pixel + 1 + random() % 40);
          parts.push_back({pixel, end, vector, next});
          pixel = end;
        }
        vector = next;
      }
      run(kernels(isa), p, p.epilogue(Epilogue::raw, false), parts, split);
      CHECK(std::memcmp(whole.output.begin(), split.output.begin(), whole.output.size() * sizeof(float)) == 0);
      run(kernels(isa), last, p.epilogue(Epilogue::raw, false),
          {{0, last.pixels(), 0, p.words}}, alone);
      CHECK(std::memcmp(whole.output.begin() + 4 * alone.output.size(), alone.output.begin(),
                        alone.output.size() * sizeof(float)) == 0);

      // Unit scales and no bias turn the masked epilogue's outputs into sums.
      ConvEpilogue e = p.epilogue(Epilogue::masked, false);
      const std::vector<float> ones(p.words * kLanes, 1.0f), zeros(p.words * kLanes, 0.0f);
      e.scale = ones.data(), e.bias = zeros.data(), e.low = -kInfinity, e.high = kInfinity;
      for (auto& word : masked.masks) word = random();
      run(kernels(isa), p, e, {{0, p.pixels(), 0, p.words}}, masked);
      int different = 0;
      for (std::int64_t i = 0; i < whole.output.size(); ++i) {
        const float value = masked.output.begin()[i];
        different += !poisoned(value) && value != whole.output.begin()[i];
      }
      CHECK(different == 0);
    }
  }
}

// At the edges of a map taps are left out, for rectangles of pixels that depend on the range and on the batch.
TEST(edges) {
  const std::vector<ConvShape> shapes = {
      shape_of(8, 32, 1, Lists::contiguous),
      shape_of(3, 32, 1, Lists::contiguous, 7, 7, 2, 2, 3, 3),
      shape_of(8, 32, 2, Lists::shuffled, 5, 3, 1, 2, 4, 1),
      shape_of(8, 48, 1, Lists::contiguous, 3, 3, 1, 1, 2, 2, 2, 2),
      shape_of(4, 32, 1, Lists::contiguous, 1, 7, 1, 1, 0, 5)};
  for (const ConvShape& shape : shapes) {
    for (const auto& [height, width] : std::vector<std::array<int, 2>>{{7, 7}, {14, 5}, {5, 14}, {21, 19}, {2, 50}}) {
      if (height + 2 * shape.padding[0] <= shape.dilation[0] * (shape.kernel[0] - 1)) continue;
      const Problem p(shape, 5, height, width);
      check(p, "edges");
      const std::int64_t row = p.width, image = p.height * row;
      const std::vector<std::vector<std::int64_t>> cuts = {
          {0, row, image - row, image, 2 * image + row, p.pixels()}, {0, image, 5 * image}, {0, image + 1, p.pixels()}};
      for (Isa isa : isas()) {
        Result whole(p);
        run(kernels(isa), p, p.epilogue(Epilogue::raw, false), {{0, p.pixels(), 0, p.words}}, whole);
        for (const std::vector<std::int64_t>& cut : cuts) {
          std::vector<Part> parts;
          for (std::size_t i = 1; i < cut.size(); ++i) parts.push_back({cut[i - 1], cut[i], 0, p.words});
          Result split(p);
          run(kernels(isa), p, p.epilogue(Epilogue::raw, false), parts, split);
          CHECK(std::memcmp(whole.output.begin(), split.output.begin(), whole.output.size() * sizeof(float)) == 0);
        }
      }
    }
  }
}

// NaN and infinity reach the outputs that read them, through the clamp, and no other.
TEST(not_a_number) {
  for (int blocks : {1, 2, 4, 8}) {
    for (int in : {32, 64}) {
      for (Lists lists : {Lists::contiguous, Lists::shuffled, Lists::any}) {
        for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
          Problem p(shape_of(in, 24, blocks, lists), 1, 3, 3);
          p.input.at(0, 1, 1)[5] = bad;
          for (Isa isa : isas()) {
            Result result(p);
            ConvEpilogue e = p.epilogue(Epilogue::plain, true);
            run(kernels(isa), p, e, {{0, p.pixels(), 0, p.words}}, result);
            for (int pixel = 0; pixel < 9; ++pixel) {
              const float* out = result.output.at(0, pixel / 3, pixel % 3);
              for (int c = 0; c < 32; ++c) {
                const int block = c / (24 / blocks), n = p.shape.inputs_per_block;
                const std::int32_t* list = p.shape.inputs.data() + block * n;
                const auto reads = c >= 24 ? 0 : std::count(list, list + n, 5);
                if (c >= 24) CHECK(same_bits(out[c], 0.0f));
                else if (reads == 0) CHECK(std::isfinite(out[c]));
                else if (std::isnan(bad)) CHECK(std::isnan(out[c]));
              }
            }
          }
        }
      }
    }
  }
}

TEST(rounding_leaves_few_decisions_open) {
  std::printf("%d results checked; %d decisions, of which %d within the rounding band\n", checked, decisions,
              undecided);
  CHECK(checked > 5000 * static_cast<int>(isas().size()) && undecided < 1e-4 * decisions);
}

}  // namespace
}  // namespace headgate
