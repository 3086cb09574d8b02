// Layouts, pools and what works element by element, against plain loops in float64.
#include "kernels/maps/maps.h"

#include <algorithm>
#include <cstdio>
#include <numeric>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "tests/check.h"
#include "tests/isas.h"
#include "tests/map_problem.h"

namespace headgate {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

const MapsKernels& kernels(Isa isa) { return kernel_set(isa).maps; }

const int kChannels[] = {1, 3, 15, 16, 17, 33, 40};

using Kernel = std::function<void(const MapsKernels&, const Map& output, RowRange rows)>;

int checked = 0;

void report(const char* what, Isa isa, const Map& output, const std::string& problem) {
  if (!problem.empty()) {
    std::printf("%s, %s, %d channels, %dx%d: %s\n", what, name(isa), output.channels, output.height, output.width,
                problem.c_str());
  }
  CHECK(problem.empty());
  ++checked;
}

// The kernel on all rows, and on some of them only, whose neighbours are then those of other threads.
void check(const char* what, int images, int channels, int height, int width, const Kernel& kernel,
           const Reference& reference) {
  const std::int64_t n = std::int64_t{images} * height;
  for (Isa isa : isas()) {
    for (const RowRange& rows : {RowRange{0, n}, RowRange{n / 3, n - n / 5}}) {
      Framed output(images, channels, height, width, channels % 2, poison());
      kernel(kernels(isa), output.map(), rows);
      const auto written = [&](std::int64_t pixel) { return pixel / width >= rows.begin && pixel / width < rows.end; };
      report(what, isa, output.map(), problem_with(output, images, written, reference));
    }
  }
}

// ---- Layouts.

void check_layouts(int images, int channels, int height, int width) {
  const std::int64_t plane = std::int64_t{height} * width;
  const auto at = [&](int image, int y, int x, int c) { return (image * channels + c) * plane + y * width + x; };
  std::vector<float> dense(images * channels * plane);
  std::iota(dense.begin(), dense.end(), 1.0f);
  check("from_nchw", images, channels, height, width,
        [&](const MapsKernels& k, const Map& output, RowRange rows) { k.from_nchw(dense.data(), output, rows); },
        [&](int image, int y, int x, int c) { return Expected{dense[at(image, y, x, c)], 0}; });

  InputMap input(images, channels, height, width, channels);
  const std::int64_t rows = std::int64_t{images} * height;
  for (Isa isa : isas()) {
    for (const RowRange& range : {RowRange{0, rows}, RowRange{rows / 3, rows - rows / 5}}) {
      std::vector<float> output(dense.size(), poison());
      kernels(isa).to_nchw(input.map(), output.data(), range);
      bool same = true;
      for (std::int64_t row = 0; row < rows; ++row) {
        const int image = row / height, y = row % height;
        for (int x = 0; x < width; ++x) {
          for (int c = 0; c < channels; ++c) {
            const bool inside = row >= range.begin && row < range.end;
            same &= same_bits(output[at(image, y, x, c)], inside ? input.at(image, y, x)[c] : poison());
          }
        }
      }
      report("to_nchw", isa, input.map(), same ? "" : "not the input's numbers");
    }
  }
}

TEST(layouts) {
  for (int channels : kChannels) check_layouts(2, channels, 3, 5);
  for (int images = 1; images <= 33; ++images) check_layouts(images, 5, 2, 1);
}

// The channels of several maps side by side; none touches another's.
TEST(copy_channels) {
  for (const std::vector<int>& parts : {std::vector{1}, {16}, {3, 13}, {16, 16, 1}, {5, 16, 20, 1, 7}, {15, 1, 17}}) {
    const int channels = std::accumulate(parts.begin(), parts.end(), 0), images = 3, height = 2, width = 4;
    for (Isa isa : isas()) {
      for (const RowRange& rows : {RowRange{0, 6}, RowRange{1, 5}}) {
        Framed output(images, channels, height, width, 1, poison());
        Framed expected(images, channels, height, width, 1, poison());
        int first = 0;
        for (int part : parts) {
          InputMap input(images, part, height, width, part);
          kernels(isa).copy_channels(input.map(), output.map(), first, rows);
          for (std::int64_t row = rows.begin; row < rows.end; ++row) {
            for (int x = 0; x < width; ++x) {
              const int image = row / height, y = row % height;
              float* to = expected.at(image, y, x);
              std::copy_n(input.at(image, y, x), part, to + first);
              if (first + part == channels) std::fill(to + channels, to + padded_channels(channels), 0.0f);
            }
          }
          first += part;
          const bool same = std::memcmp(output.begin(), expected.begin(), output.size() * sizeof(float)) == 0;
          report("copy_channels", isa, output.map(), same ? "" : "not the parts' channels, side by side");
        }
      }
    }
  }
}

// ---- Pools.

// A window's numbers, and how many positions of it, cut to the padded map, an average with padding divides by.
struct Seen {
  std::vector<double> values;
  int positions = 0;
};

Seen seen(InputMap& input, const PoolWindow& w, int image, int y, int x, int c) {
  Seen seen;
  const Map& map = input.map();
  for (int i = 0; i < w.kernel[0]; ++i) {
    for (int j = 0; j < w.kernel[1]; ++j) {
      const int in_y = y * w.stride[0] - w.padding[0] + i * w.dilation[0];
      const int in_x = x * w.stride[1] - w.padding[1] + j * w.dilation[1];
      seen.positions += in_y < map.height + w.padding[0] && in_x < map.width + w.padding[1];
      if (in_y < 0 || in_y >= map.height || in_x < 0 || in_x >= map.width) continue;
      seen.values.push_back(input.at(image, in_y, in_x)[c]);
    }
  }
  return seen;
}

Expected average(const std::vector<double>& values, double divisor) {
  double sum = 0, magnitude = 0;
  for (double value : values) sum += value, magnitude += std::abs(value);
  return {sum / divisor, 1.01 * kUnit * (values.size() + 1) * magnitude / divisor};
}

// `cut`: also the outputs whose window reaches behind the padding, as torch's ceil_mode has them.
int out_size(const PoolWindow& w, int axis, int size, bool cut) {
  const int slack = size + 2 * w.padding[axis] - w.dilation[axis] * (w.kernel[axis] - 1) - 1;
  const int outputs = slack / w.stride[axis] + 1;
  const bool begins_inside = outputs * w.stride[axis] < size + w.padding[axis];
  return outputs + (cut && slack % w.stride[axis] != 0 && begins_inside);
}

void check_pools(PoolWindow w, int images, int channels, int height, int width, bool cut) {
  InputMap input(images, channels, height, width, channels + width);
  const int high = out_size(w, 0, height, cut), wide = out_size(w, 1, width, cut);
  check("max_pool", images, channels, high, wide,
        [&](const MapsKernels& k, const Map& output, RowRange rows) { k.max_pool(input.map(), w, output, rows); },
        [&](int image, int y, int x, int c) {
          const std::vector<double> values = seen(input, w, image, y, x, c).values;
          return Expected{*std::max_element(values.begin(), values.end()), 0};
        });
  if (w.dilation[0] != 1 || w.dilation[1] != 1) return;
  for (bool include_pad : {false, true}) {
    w.count_include_pad = include_pad;
    check("avg_pool", images, channels, high, wide,
          [&](const MapsKernels& k, const Map& output, RowRange rows) { k.avg_pool(input.map(), w, output, rows); },
          [&](int image, int y, int x, int c) {
            const Seen all = seen(input, w, image, y, x, c);
            return average(all.values, include_pad ? all.positions : static_cast<double>(all.values.size()));
          });
  }
}

TEST(pools) {
  for (int channels : kChannels) {
    check_pools({{3, 3}, {2, 2}, {1, 1}, {1, 1}, false}, 2, channels, 7, 6, false);
    check_pools({{2, 2}, {2, 2}, {0, 0}, {1, 1}, false}, 1, channels, 5, 5, true);
  }
  for (int images = 1; images <= 33; ++images) {
    check_pools({{2, 3}, {1, 2}, {1, 0}, {1, 1}, false}, images, 5, 3, 3, false);
  }
}

TEST(windows_of_the_map) {
  std::mt19937 random(3);
  const auto one_of = [&](std::initializer_list<int> values) { return values.begin()[random() % values.size()]; };
  for (int trial = 0; trial < 200; ++trial) {
    PoolWindow w{};
    int size[2];
    for (int axis : {0, 1}) {
      w.kernel[axis] = one_of({1, 2, 3, 5, 7}), w.stride[axis] = one_of({1, 1, 2, 3, 4});
      w.padding[axis] = random() % (w.kernel[axis] / 2 + 1), w.dilation[axis] = one_of({1, 1, 2, 3});
      const int reach = w.dilation[axis] * (w.kernel[axis] - 1) + 1 - 2 * w.padding[axis];
      size[axis] = std::max({reach, 1, w.padding[axis] > 0 ? w.dilation[axis] : 1}) + random() % 8;
    }
    check_pools(w, one_of({1, 2}), one_of({7, 16, 20}), size[0], size[1], trial % 2 == 1);
  }
}

TEST(adaptive_pools) {
  const auto check_size = [](int images, int channels, int height, int width, int high, int wide) {
    InputMap input(images, channels, height, width, channels + width);
    check("adaptive_avg_pool", images, channels, high, wide,
          [&](const MapsKernels& k, const Map& output, RowRange rows) {
            k.adaptive_avg_pool(input.map(), output, rows);
          },
          [&](int image, int y, int x, int c) {
            std::vector<double> values;
            for (int i = y * height / high; i * high < (y + 1) * height; ++i) {
              for (int j = x * width / wide; j * wide < (x + 1) * width; ++j) values.push_back(input.at(image, i, j)[c]);
            }
            return average(values, static_cast<double>(values.size()));
          });
  };
  for (int channels : kChannels) check_size(2, channels, 7, 7, 1, 1);
  for (int images = 1; images <= 33; ++images) check_size(images, 5, 3, 2, 1, 1);
  for (int high : {1, 2, 3, 6, 7, 9}) {
    for (int wide : {1, 4, 5, 11}) check_size(2, 18, 7, 5, high, wide);
  }
}

// ---- Element by element.

const Function kFunctions[] = {Function::none,        Function::relu, Function::relu6,   Function::hardswish,
                               Function::hardsigmoid, Function::silu, Function::sigmoid, Function::tanh};

// f(x) of an x that is known within `error`: the slope carries that error on, roundings and the exponential add theirs.
Expected function_of(Function function, double x, double error) {
  constexpr double kSigmoid = 3e-7 + 2.02 * kUnit;  // relative: the exponential's, an addition's, a division's
  constexpr double kSmallest = 1e-38;               // what a sigmoid stops at
  const double bounded = std::clamp(x + 3, 0.0, 6.0), sigmoid = 1 / (1 + std::exp(-x));
  switch (function) {
    case Function::none: return {x, error};
    case Function::relu: return {x > 0 ? x : std::isnan(x) ? x : 0.0, error};
    case Function::relu6: return {std::clamp(x, 0.0, 6.0), error};
    case Function::hardswish: {
      const double slope = std::abs(x) < 3 + error ? 1.5 : std::abs(x) > 3 && x < 0 ? 0.0 : 1.0;
      return {x * bounded / 6, slope * error + kUnit * std::abs(x) * (3 * bounded + (std::abs(x) < 4 ? 7 : 0)) / 6};
    }
    case Function::hardsigmoid:
      return {bounded / 6, error / 6 + kUnit * (3 * bounded + (std::abs(x) < 4 ? 7 : 0)) / 6};
    case Function::silu: return {x * sigmoid, 1.1 * error + std::abs(x) * (kSigmoid * sigmoid + kSmallest)};
    case Function::sigmoid: return {sigmoid, error / 4 + kSigmoid * sigmoid + kSmallest};
    case Function::tanh: return {std::tanh(x), error + 2 * kSigmoid + kUnit};
  }
  return {};
}

void check_element_by_element(int images, int channels, int height, int width, Function function) {
  // Numbers on either side of every bend, and beyond what an exponential can take.
  InputMap a(images, channels, height, width, 1, 2.0f), b(images, channels, height, width, 2, 2.0f);
  InputMap large(images, channels, height, width, 4, 60.0f);
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  Aligned scale(padded_channels(channels), 0.0f), bias(padded_channels(channels), 0.0f);
  for (int c = 0; c < channels; ++c) scale.data()[c] = normal(random), bias.data()[c] = normal(random);

  check("add", images, channels, height, width,
        [&](const MapsKernels& k, const Map& output, RowRange rows) { k.add(a.map(), b.map(), output, function, rows); },
        [&](int image, int y, int x, int c) {
          const double sum = double{a.at(image, y, x)[c]} + b.at(image, y, x)[c];
          return function_of(function, sum, kUnit * std::abs(sum));
        });
  check("affine", images, channels, height, width,
        [&](const MapsKernels& k, const Map& output, RowRange rows) {
          k.affine(a.map(), scale.data(), bias.data(), output, function, rows);
        },
        [&](int image, int y, int x, int c) {
          const double scaled = double{a.at(image, y, x)[c]} * scale.data()[c], sum = scaled + bias.data()[c];
          return function_of(function, sum, kUnit * (std::abs(scaled) + std::abs(sum)));
        });
  const auto of_large = [&](int image, int y, int x, int c) {
    return function_of(function, large.at(image, y, x)[c], 0);
  };
  check("activation", images, channels, height, width,
        [&](const MapsKernels& k, const Map& output, RowRange rows) {
          k.affine(large.map(), nullptr, nullptr, output, function, rows);
        },
        of_large);
  check("activation in place", images, channels, height, width,
        [&](const MapsKernels& k, const Map& output, RowRange rows) {
          k.affine(large.map(), nullptr, nullptr, output, Function::none, rows);
          k.affine(output, nullptr, nullptr, output, function, rows);
        },
        of_large);
}

TEST(functions) {
  for (Function function : kFunctions) {
    for (int channels : kChannels) check_element_by_element(2, channels, 3, 5, function);
    check_element_by_element(1, 64, 16, 16, function);
  }
  for (int images = 1; images <= 33; ++images) check_element_by_element(images, 5, 2, 1, Function::hardsigmoid);
}

TEST(products) {
  const auto check_product = [](int images, int channels, int height, int width, bool broadcast) {
    InputMap a(images, channels, height, width, 1);
    InputMap b(images, channels, broadcast ? 1 : height, broadcast ? 1 : width, 2);
    check("mul", images, channels, height, width,
          [&](const MapsKernels& k, const Map& output, RowRange rows) { k.mul(a.map(), b.map(), output, rows); },
          [&](int image, int y, int x, int c) {
            const double product = double{a.at(image, y, x)[c]} * b.at(image, broadcast ? 0 : y, broadcast ? 0 : x)[c];
            return Expected{product, kUnit * std::abs(product)};
          });
  };
  for (bool broadcast : {false, true}) {
    for (int channels : kChannels) check_product(2, channels, 3, 5, broadcast);
    for (int images = 1; images <= 33; ++images) check_product(images, 5, 2, 2, broadcast);
  }
}

// ---- What is no number: NaN passes through, infinities go to the functions' limits.

TEST(not_a_number) {
  struct Limits {
    Function function;
    float below, above;  // f(−∞), f(∞)
  };
  for (const Limits& limits : {Limits{Function::none, -kInfinity, kInfinity}, {Function::relu, 0, kInfinity},
                               {Function::relu6, 0, 6}, {Function::hardsigmoid, 0, 1}, {Function::sigmoid, 0, 1},
                               {Function::tanh, -1, 1}, {Function::hardswish, kNan, kInfinity},
                               {Function::silu, kNan, kInfinity}}) {
    InputMap input(1, 19, 1, 3);
    const float special[] = {kNan, -kInfinity, kInfinity}, expected[] = {kNan, limits.below, limits.above};
    for (int x = 0; x < 3; ++x) input.at(0, 0, x)[18] = special[x];
    check("not a number", 1, 19, 1, 3,
          [&](const MapsKernels& k, const Map& output, RowRange rows) {
            k.affine(input.map(), nullptr, nullptr, output, limits.function, rows);
          },
          [&](int image, int y, int x, int c) {
            return c == 18 ? Expected{expected[x], 1e-38} : function_of(limits.function, input.at(image, y, x)[c], 0);
          });
  }
}

TEST(not_a_number_in_a_window) {
  const PoolWindow window{{3, 3}, {1, 1}, {1, 1}, {1, 1}, true};
  for (float bad : {kNan, kInfinity}) {
    InputMap input(1, 19, 4, 4);
    input.at(0, 1, 1)[18] = bad;
    const auto sees_it = [](int y, int x, int c) { return c == 18 && y < 3 && x < 3; };
    for (Isa isa : isas()) {
      Framed most(1, 19, 4, 4, 1, poison()), mean(1, 19, 4, 4, 1, poison());
      kernels(isa).max_pool(input.map(), window, most.map(), {0, 4});
      kernels(isa).avg_pool(input.map(), window, mean.map(), {0, 4});
      for (int pixel = 0; pixel < 16; ++pixel) {
        const int y = pixel / 4, x = pixel % 4;
        for (int c = 0; c < 19; ++c) {
          for (const float value : {most.at(0, y, x)[c], mean.at(0, y, x)[c]}) {
            CHECK(sees_it(y, x, c) ? std::isnan(bad) ? std::isnan(value) : value == bad : std::isfinite(value));
          }
        }
      }
    }
  }
}

TEST(every_result_was_checked) {
  std::printf("%d results checked\n", checked);
  CHECK(checked >= 1500 * static_cast<int>(isas().size()));
}

}  // namespace
}  // namespace headgate
