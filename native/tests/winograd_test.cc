#include "kernels/winograd/winograd.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "tests/check.h"
#include "tests/framed.h"
#include "tests/isas.h"
#include "tests/winograd_problem.h"

namespace headgate {
namespace {

constexpr double kUnit = 0x1p-24;

struct Part {
  std::int64_t begin, end;
  int first_vector, last_vector;
};

using Output = Framed;

Output output_of(const Problem& p) {
  return Output(p.sizes.images, p.sizes.out, p.height, p.width, 1, poison());
}

void run(Isa isa, Problem& p, int tile, const ConvEpilogue& epilogue, const std::vector<Part>& parts, Output& output) {
  const WinogradShape shape = p.shape(tile);
  const WinogradKernels& kernels = kernel_set(isa).winograd;
  Aligned packed(kernels.packed_size(shape), poison());
  kernels.pack(shape, p.weight.data(), packed.data());
  for (const Part& part : parts) {
    Aligned scratch(winograd_scratch_size(shape), poison());
    kernels.run({&shape, packed.data(), p.input.map(), output.map(), epilogue, part.begin, part.end,
                 part.first_vector, part.last_vector, scratch.data()});
  }
}

// That were not in doubt: closed, and open.
std::int64_t decisions[2] = {};

// What is wrong with the result of `part` alone, or nothing.
std::string problem_with(Problem& p, int tile, const std::vector<double>& magnitude, const ConvEpilogue& e,
                         const Part& part, Output& output) {
  std::int64_t written = 0;
  const int columns = (p.width + tile - 1) / tile, rows = (p.height + tile - 1) / tile;
  for (std::int64_t pixel = 0; pixel < std::int64_t{p.sizes.images} * p.height * p.width; ++pixel) {
    const int image = pixel / (p.height * p.width), y = pixel / p.width % p.height, x = pixel % p.width;
    const std::int64_t of = (std::int64_t{image} * rows + y / tile) * columns + x / tile;
    const float* out = output.at(image, y, x);
    for (int c = 0; c < p.words * kLanes; ++c) {
      const auto wrong = [&](const char* what, double expected) {
        return std::string(what) + ": image " + std::to_string(image) + " y " + std::to_string(y) + " x " +
               std::to_string(x) + " channel " + std::to_string(c) + " is " + std::to_string(out[c]) + ", not " +
               std::to_string(expected);
      };
      if (of < part.begin || of >= part.end || c / kLanes < part.first_vector || c / kLanes >= part.last_vector) {
        if (!poisoned(out[c])) return wrong("touched", 0);
        continue;
      }
      ++written;
      const std::int64_t word = pixel * p.words + c / kLanes;
      const bool decided = e.kind == Epilogue::gate || e.kind == Epilogue::masked;
      const bool open = decided && (e.masks[word] >> c % kLanes & 1) != 0;
      if (c >= p.sizes.out) {
        if (e.kind == Epilogue::gate && open) return wrong("padding's decision", 0);
        if (!same_bits(out[c], e.kind == Epilogue::masked ? poison() : 0.0f)) return wrong("padding", 0);
        continue;
      }
      if (e.kind == Epilogue::masked && !open) {
        if (!poisoned(out[c])) return wrong("closed", 0);
        continue;
      }
      const std::int64_t at = pixel * p.sizes.out + c;
      const double sum = p.sums.sum[at], bound = 1.01 * kUnit * roundings(p) * magnitude[at];
      if (e.kind == Epilogue::gate) {
        double margin = 0, doubt = 0;
        for (int i = c - c % e.group_size; i < c - c % e.group_size + e.group_size; ++i) {
          const double own = p.sums.sum[at - c + i], n = own * e.score_scale[i] + e.score_bias[i];
          const double score = e.two_sided ? e.center - std::abs(n) : n;
          margin += score;
          doubt += std::abs(e.score_scale[i]) * 1.01 * kUnit * roundings(p) * magnitude[at - c + i] +
                   (4 + e.group_size) * kUnit * (std::abs(own * e.score_scale[i]) + std::abs(e.score_bias[i]) + e.center);
        }
        if (e.gain != nullptr) margin *= e.gain[c], doubt *= std::abs(e.gain[c]);
        margin -= e.threshold[c];
        if (std::abs(margin) > doubt && open != (margin > 0)) return wrong("decision", margin);
        decisions[open] += std::abs(margin) > doubt;
      }
      if (e.kind == Epilogue::raw || (e.kind == Epilogue::gate && open)) {
        if (!(std::abs(out[c] - sum) <= bound)) return wrong("sum", sum);
        continue;
      }
      const double r = e.residual == nullptr ? 0.0 : pixel_at(*e.residual, image, y, x)[c];
      const double expected = std::clamp(sum * e.scale[c] + e.bias[c] + r, double{e.low}, double{e.high});
      const double tolerance = std::abs(e.scale[c]) * bound +
                               4 * kUnit * (std::abs(sum * e.scale[c]) + std::abs(e.bias[c]) + std::abs(r));
      if (!(std::abs(out[c] - expected) <= tolerance)) return wrong("value", expected);
    }
  }
  if (e.kind == Epilogue::masked) return "";  // what is closed is poison as the frame is
  for (std::int64_t i = 0; i < output.size(); ++i) written -= !poisoned(output.begin()[i]);
  return written == 0 ? "" : "the frame was touched";
}

int checked = 0;

// All tiles there are, with a residual or without, or with all endings, the whole and an odd part.
void check(Problem p, const char* what, bool endings = false) {
  const std::vector<int> tiles = p.sizes.stride == 1 ? std::vector<int>{2, 4} : std::vector<int>{3};
  for (int tile : tiles) {
    const std::vector<double> magnitude = magnitudes(p, tile);
    for (Isa isa : isas()) {
      const std::int64_t n = p.tiles(tile);
      const Part whole{0, n, 0, p.words}, part{n / 3, n - n / 4, p.words / 2, p.words};
      std::vector<std::uint16_t> decided(p.masks.size());
      std::vector<ConvEpilogue> epilogues = {p.epilogue(false), p.epilogue(true)};
      if (endings) {
        for (int group : {0, 1, std::gcd(p.sizes.out, kernel_set(isa).conv.lanes)}) {
          for (bool two_sided : {false, true}) epilogues.push_back(p.gate(two_sided, group, decided));
        }
        for (bool with_residual : {false, true}) epilogues.push_back(p.masked(with_residual));
        epilogues.push_back(p.epilogue(false)), epilogues.back().kind = Epilogue::raw;
      }
      for (const ConvEpilogue& e : epilogues) {
        for (const Part& range : {whole, part}) {
          Output output = output_of(p);
          run(isa, p, tile, e, {range}, output);
          const std::string problem = problem_with(p, tile, magnitude, e, range, output);
          if (!problem.empty()) {
            std::printf("%s, %s, tiles of %d: in %d out %d, %d of %d×%d: %s\n", what, name(isa), tile, p.sizes.in,
                        p.sizes.out, p.sizes.images, p.sizes.height, p.sizes.width, problem.c_str());
          }
          CHECK(problem.empty());
          ++checked;
        }
      }
    }
  }
}

TEST(channels) {
  for (int in : {1, 3, 15, 16, 17, 37}) {
    for (int out : {1, 15, 16, 17, 31, 33, 64, 71}) check(Problem({in, out, 5, 6}, in + out), "channels");
  }
}

TEST(maps) {
  for (int height : {1, 2, 3, 4, 5, 7, 8, 9}) {
    for (int width : {1, 2, 3, 4, 5, 6, 7, 13}) check(Problem({5, 19, height, width}, height + width), "maps");
  }
}

TEST(paddings) {
  for (int height : {0, 1, 2}) {
    for (int width : {0, 1, 2}) {
      for (int size : {3, 4, 6, 7, 10}) {
        check(Problem({4, 17, size, 13 - size, height, width, 2}, size), "paddings");
      }
    }
  }
}

TEST(endings) {
  check(Problem({5, 19, 7, 6}), "endings", true);
  check(Problem({18, 64, 4, 9, 1, 1, 3}), "endings", true);
}

TEST(groups) {
  for (int blocks : {2, 3, 4}) {
    for (int inputs : {16, 32}) {
      for (int outputs : {16, 32, 48}) {
        check(Problem({blocks * inputs, blocks * outputs, 5, 6, 1, 1, 2, blocks}), "groups", outputs == 32);
      }
    }
  }
}

// Blocks of 8 outputs share vectors of 16; and inputs in another order.
TEST(narrow_groups) {
  for (int inputs : {2, 4, 8}) {
    check(Problem({4 * inputs, 32, 5, 6, 1, 1, 2, 4}), "narrow groups", inputs == 8);
  }
}

TEST(shuffled_groups) {
  for (const auto& [channels, blocks] : {std::pair{32, 4}, {64, 8}, {64, 4}, {128, 8}, {48, 3}}) {
    check(Problem({channels, channels, 4, 5, 1, 1, 2, blocks, true}), "shuffled groups", channels == 32);
  }
}

Sizes stem(int in, int out, int height, int width, int padding = 3, int images = 1) {
  return {in, out, height, width, padding, padding, images, 1, false, 7, 2};
}

TEST(stems) {
  for (int in : {1, 3, 4}) {
    for (int out : {1, 16, 33, 64}) check(Problem(stem(in, out, 17, 14), in + out), "stems", out == 33);
  }
  for (int height : {1, 2, 7, 8, 11, 12, 13, 18}) {
    for (int width : {1, 3, 9, 12, 23}) check(Problem(stem(3, 17, height, width, 3, 2), height + width), "maps of stems");
  }
  for (int padding : {0, 1, 2, 4, 5}) check(Problem(stem(3, 17, 20, 13, padding), padding), "paddings of stems");
  check(Problem(stem(3, 16, 90, 95)), "a large stem");
}

// A padding beyond what the kernel reaches.
TEST(wide_padding) { check(Problem({4, 17, 3, 5, 3, 4, 2}), "wide padding"); }

// More tiles than are at hand at once, across images.
TEST(batches) {
  for (int images : {1, 2, 5, 33}) check(Problem({18, 20, 7, 9, 1, 1, images}, images), "batches");
  check(Problem({3, 16, 61, 59}), "a large map");
  check(Problem({130, 33, 10, 9, 1, 1, 3}), "wide");
}

// An output's bits depend on its own inputs alone: not on the range, its splits, the batch or the place in it.
TEST(order_of_sums) {
  std::mt19937 random(11);
  for (int tile : {2, 4}) {
    for (const Sizes& sizes :
         std::vector<Sizes>{{16, 64, 7, 17, 1, 1, 5}, {64, 80, 6, 9, 0, 2, 5}, {20, 16, 9, 9, 1, 1, 5},
                                {48, 144, 7, 9, 1, 1, 5, 3},
                                {32, 32, 7, 9, 1, 1, 5, 4}, {64, 64, 7, 9, 1, 1, 5, 8, true}}) {
      Problem p(sizes);
      const ConvEpilogue e = p.raw();
      Sizes one = sizes;
      one.images = 1;
      Problem alone(one);
      alone.weight = p.weight;
      for (int y = 0; y < sizes.height; ++y) {
        for (int x = 0; x < sizes.width; ++x) std::copy_n(p.input.at(4, y, x), sizes.in, alone.input.at(0, y, x));
      }
      for (Isa isa : isas()) {
        Output whole = output_of(p), split = output_of(p), last = output_of(alone);
        run(isa, p, tile, e, {{0, p.tiles(tile), 0, p.words}}, whole);
        std::vector<Part> parts;
        for (int vector = 0; vector < p.words;) {
          const int next = std::min<int>(p.words, vector + 1 + random() % 3);
          for (std::int64_t at = 0; at < p.tiles(tile);) {
            const std::int64_t end = std::min<std::int64_t>(p.tiles(tile), at + 1 + random() % 20);
            parts.push_back({at, end, vector, next});
            at = end;
          }
          vector = next;
        }
        run(isa, p, tile, e, parts, split);
        CHECK(std::memcmp(whole.begin(), split.begin(), whole.size() * sizeof(float)) == 0);
        run(isa, alone, tile, e, {{0, alone.tiles(tile), 0, p.words}}, last);
        CHECK(std::memcmp(whole.begin() + 4 * last.size(), last.begin(), last.size() * sizeof(float)) == 0);
      }
    }
  }
}

// A tile's outputs are sums of all of its inputs, of which most cancel: a NaN, or an infinity, may reach all of them, and
// reaches those that read it; and no other tile.
TEST(not_a_number) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    for (int tile : {2, 4}) {
      Problem p({20, 24, 13, 13});
      const ConvEpilogue e = p.raw();
      for (Isa isa : isas()) {
        Output clean = output_of(p), output = output_of(p);
        run(isa, p, tile, e, {{0, p.tiles(tile), 0, p.words}}, clean);
        float& value = p.input.at(0, 6, 7)[5];
        const float before = std::exchange(value, bad);
        run(isa, p, tile, e, {{0, p.tiles(tile), 0, p.words}}, output);
        value = before;
        for (int y = 0; y < 13; ++y) {
          for (int x = 0; x < 13; ++x) {
            const auto reads = [&](int at, int input) {
              const int first = at / tile * tile - 1;
              return first <= input && input <= first + tile + 1;
            };
            const bool near = std::abs(y - 6) <= 1 && std::abs(x - 7) <= 1;
            for (int c = 0; c < 24; ++c) {
              const float was = clean.at(0, y, x)[c], is = output.at(0, y, x)[c];
              if (!reads(y, 6) || !reads(x, 7)) CHECK(same_bits(was, is));
              if (near) CHECK(!std::isfinite(is));
            }
            for (int c = 24; c < 32; ++c) CHECK(same_bits(output.at(0, y, x)[c], 0.0f));
          }
        }
      }
    }
  }
}

// The same of a stem, whose tiles of 3 read 11 pixels a side.
TEST(not_a_number_in_a_stem) {
  Problem p(stem(3, 20, 40, 40));
  const ConvEpilogue e = p.raw();
  for (Isa isa : isas()) {
    Output clean = output_of(p), output = output_of(p);
    run(isa, p, 3, e, {{0, p.tiles(3), 0, p.words}}, clean);
    float& value = p.input.at(0, 17, 20)[1];
    const float before = std::exchange(value, std::numeric_limits<float>::quiet_NaN());
    run(isa, p, 3, e, {{0, p.tiles(3), 0, p.words}}, output);
    value = before;
    for (int y = 0; y < p.height; ++y) {
      for (int x = 0; x < p.width; ++x) {
        const auto within = [](int first, int pixels, int input) { return first <= input && input < first + pixels; };
        const bool reads = within(2 * (y / 3 * 3) - 3, 11, 17) && within(2 * (x / 3 * 3) - 3, 11, 20);
        const bool needs = within(2 * y - 3, 7, 17) && within(2 * x - 3, 7, 20);
        for (int c = 0; c < 20; ++c) {
          const float was = clean.at(0, y, x)[c], is = output.at(0, y, x)[c];
          CHECK(reads ? !needs || std::isnan(is) : same_bits(was, is));
        }
      }
    }
  }
}

// The errors themselves, not their bound: beside the direct kernels', as root mean squares.
TEST(typical_errors) {
  struct Case {
    Sizes sizes;
    int tile;
    double most;
  };
  std::vector<Case> cases;
  for (int channels : {16, 64, 128}) {
    for (const auto& [tile, most] : {std::pair{2, 0.9}, std::pair{4, 2.6}}) {
      cases.push_back({{channels, 32, 16, 16}, tile, most});
    }
  }
  cases.push_back({stem(3, 32, 40, 40), 3, 2.6});
  for (const Case& c : cases) {
    Problem p(c.sizes);
    const ConvEpilogue e = p.raw();
    const auto error = [&](Output& output) {
      double squares = 0;
      for (std::size_t i = 0; i < p.sums.sum.size(); ++i) {
        const int pixel = i / p.sizes.out;
        squares += std::pow(output.at(0, pixel / p.width, pixel % p.width)[i % p.sizes.out] - p.sums.sum[i], 2);
      }
      return std::sqrt(squares / p.sums.sum.size());
    };
    for (Isa isa : isas()) {
      const ConvKernels& conv = kernel_set(isa).conv;
      Aligned packed(conv.packed_size(p.direct), poison());
      conv.pack(p.direct, p.weight.data(), packed.data());
      Output direct = output_of(p), output = output_of(p);
      const std::int64_t pixels = std::int64_t{p.height} * p.width;
      conv.run({&p.direct, packed.data(), p.input.map(), direct.map(), e, 0, pixels, 0, p.words});
      run(isa, p, c.tile, e, {{0, p.tiles(c.tile), 0, p.words}}, output);
      const double ratio = error(output) / error(direct);
      std::printf("%s, %d inputs, tiles of %d: %.2f times the direct convolution's error\n", name(isa), c.sizes.in,
                  c.tile, ratio);
      CHECK(ratio < c.most);
    }
  }
}

TEST(enough_was_checked) {
  std::printf("%lld decisions without doubt, %lld of them open\n", static_cast<long long>(decisions[0] + decisions[1]),
              static_cast<long long>(decisions[1]));
  CHECK(decisions[0] > 10'000 && decisions[1] > 10'000);
  std::printf("%d results checked\n", checked);
  CHECK(checked > 1000 * static_cast<int>(isas().size()));
}

}  // namespace
}  // namespace headgate
