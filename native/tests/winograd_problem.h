// Problems for tests of Winograd's convolution, and how far rounding may take their results.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/conv/conv_reference.h"
#include "kernels/winograd/winograd.h"
#include "tests/framed.h"

namespace headgate {

// Maps in a sea of poison: unlike Framed's, what lies beyond a frame is not the next image's frame.
class Island {
 public:
  Island(int images, int channels, int height, int width, int border, std::mt19937& random)
      : pixel_(padded_channels(channels)),
        row_((width + 2 * border + 1) * std::int64_t{pixel_}),
        image_((height + 2 * border + 4) * row_),
        memory_((images + 1) * image_, poison()) {
    map_ = {memory_.data() + image_ / 2 / kLanes * kLanes, image_, row_, channels, height, width, border};
    std::normal_distribution<float> normal;
    for (int image = 0; image < images; ++image) {
      for (int y = -border; y < height + border; ++y) {
        for (int x = -border; x < width + border; ++x) {
          const bool inside = y >= 0 && y < height && x >= 0 && x < width;
          for (int c = 0; c < pixel_; ++c) at(image, y, x)[c] = inside && c < channels ? normal(random) : 0.0f;
        }
      }
    }
  }

  const Map& map() const { return map_; }
  float* at(int image, int y, int x) { return pixel_at(map_, image, y, x); }

 private:
  int pixel_;
  std::int64_t row_, image_;
  Aligned memory_;
  Map map_;
};

struct Sizes {
  int in, out, height, width;
  int pad_height = 1, pad_width = 1, images = 1, blocks = 1;
  bool shuffled = false;  // blocks read what torch's channel shuffle gives them
  int kernel = 3, stride = 1;

  int inputs_per_block() const { return in / blocks; }
};

struct Problem {
  Sizes sizes;
  ConvShape direct;
  int height, width, words;
  std::mt19937 random;
  Island input, residual;
  std::vector<float> weight, scale, bias, score_scale, score_bias, threshold, gain;
  std::vector<std::uint16_t> masks;
  ConvSums sums;

  explicit Problem(const Sizes& s, unsigned seed = 1)
      : sizes(s), direct{s.in, s.out, {s.kernel, s.kernel}, {s.stride, s.stride}, {s.pad_height, s.pad_width},
                         {1, 1}, s.blocks, s.in / s.blocks, std::vector<std::int32_t>(s.in)},
        height((s.height + 2 * s.pad_height - s.kernel) / s.stride + 1),
        width((s.width + 2 * s.pad_width - s.kernel) / s.stride + 1),
        words(padded_channels(s.out) / kLanes), random(seed),
        input(s.images, s.in, s.height, s.width, std::max(s.pad_height, s.pad_width) + seed % 2, random),
        residual(s.images, s.out, height, width, seed % 3, random),
        weight(std::size_t{1} * s.kernel * s.kernel * s.out * s.inputs_per_block()),
        scale(padded_channels(s.out)), bias(scale), score_scale(scale), score_bias(scale), threshold(scale), gain(scale),
        masks(std::size_t{1} * s.images * height * width * words) {
    for (int i = 0; i < s.in; ++i) {
      direct.inputs[i] = s.shuffled ? i % s.blocks * s.inputs_per_block() + i / s.blocks : i;
    }
    std::normal_distribution<float> normal;
    for (float& w : weight) w = normal(random);
    for (int c = 0; c < s.out; ++c) {
      scale[c] = normal(random), bias[c] = normal(random);
      score_scale[c] = normal(random), score_bias[c] = normal(random), threshold[c] = normal(random);
      gain[c] = normal(random);
    }
    for (std::uint16_t& mask : masks) mask = static_cast<std::uint16_t>(random());
    for (std::size_t word = words - 1; s.out % kLanes != 0 && word < masks.size(); word += words) {
      masks[word] &= (1u << s.out % kLanes) - 1;
    }
    sums = conv_reference(direct, weight.data(), input.map(), s.images, height, width);
  }

  WinogradShape shape(int tile) const { return {direct, tile}; }
  // The channel that an output reads in place `i`.
  int input_of(int output, int i) const {
    return direct.inputs[output / (sizes.out / sizes.blocks) * sizes.inputs_per_block() + i];
  }
  std::int64_t tiles(int tile) const {
    return std::int64_t{sizes.images} * ((height + tile - 1) / tile) * ((width + tile - 1) / tile);
  }
  ConvEpilogue epilogue(bool with_residual) const {
    ConvEpilogue e{};
    e.kind = Epilogue::plain, e.scale = scale.data(), e.bias = bias.data(), e.low = -0.5f, e.high = 2.0f;
    e.residual = with_residual ? &residual.map() : nullptr;
    return e;
  }
  // The same with decisions, of groups of `group` channels or, if that is 0, of activations; or as the masks have them.
  ConvEpilogue gate(bool two_sided, int group, std::vector<std::uint16_t>& decisions) const {
    ConvEpilogue e = epilogue(two_sided);
    e.group_size = std::max(group, 1), e.gain = group == 0 ? nullptr : gain.data();
    e.kind = Epilogue::gate, e.score_scale = score_scale.data(), e.score_bias = score_bias.data();
    e.threshold = threshold.data(), e.two_sided = two_sided, e.center = 0.75f, e.masks = decisions.data();
    return e;
  }
  ConvEpilogue masked(bool with_residual) {
    ConvEpilogue e = epilogue(with_residual);
    e.kind = Epilogue::masked, e.masks = masks.data();
    return e;
  }
  // The sums themselves.
  ConvEpilogue raw() {
    std::fill(scale.begin(), scale.end(), 1.0f), std::fill(bias.begin(), bias.end(), 0.0f);
    ConvEpilogue e = epilogue(false);
    e.low = -std::numeric_limits<float>::infinity(), e.high = std::numeric_limits<float>::infinity();
    return e;
  }
};

using Matrix = std::vector<std::vector<double>>;

// Of interpolation at `points` and at infinity: the transforms of inputs, weights and sums, as they are defined.
struct Transforms {
  Matrix input, weight, output;

  Transforms(int tile, int taps) {
    const std::vector<double> points = tile == 2 ? std::vector<double>{0, 1, -1}
                                                 : std::vector<double>{0, 1.5, -1.5, 0.625, -0.625};
    output.assign(tile, {});
    std::vector<double> all{1};  // the polynomial with these roots, its lowest coefficient first
    for (double point : points) {
      std::vector<double> others{1}, weights;
      double divisor = 1;
      for (double other : points) {
        if (other != point) others = times_root(others, other), divisor *= point - other;
      }
      others.push_back(0);
      input.push_back(others);
      for (int i = 0; i < taps; ++i) weights.push_back(std::pow(point, i) / divisor);
      weight.push_back(weights);
      for (int i = 0; i < tile; ++i) output[i].push_back(std::pow(point, i));
      all = times_root(all, point);
    }
    input.push_back(all);
    weight.emplace_back(taps, 0.0).back() = 1;
    for (int i = 0; i < tile; ++i) output[i].push_back(i == tile - 1);
  }

  static std::vector<double> times_root(const std::vector<double>& polynomial, double root) {
    std::vector<double> product(polynomial.size() + 1, 0.0);
    for (std::size_t i = 0; i < polynomial.size(); ++i) {
      product[i + 1] += polynomial[i], product[i] -= root * polynomial[i];
    }
    return product;
  }
};

// |a| · x · |a|ᵀ of a square x, all in absolute values if `absolute`.
inline Matrix sandwich(const Matrix& a, const Matrix& x, bool absolute) {
  const auto value = [&](double v) { return absolute ? std::abs(v) : v; };
  Matrix rows(a.size(), std::vector<double>(x[0].size(), 0.0)), result(a.size(), std::vector<double>(a.size(), 0.0));
  for (std::size_t i = 0; i < a.size(); ++i) {
    for (std::size_t j = 0; j < x[0].size(); ++j) {
      for (std::size_t k = 0; k < x.size(); ++k) rows[i][j] += value(a[i][k]) * value(x[k][j]);
    }
    for (std::size_t j = 0; j < a.size(); ++j) {
      for (std::size_t k = 0; k < x[0].size(); ++k) result[i][j] += rows[i][k] * value(a[j][k]);
    }
  }
  return result;
}

// The sums' magnitudes as the algorithm forms them: every product of the transforms' coefficients with an input and a
// weight, in absolute value. (images · output pixels, out channels)
inline std::vector<double> magnitudes(Problem& p, int tile) {
  // A stride of s makes s² convolutions of stride 1, of every s-th row and column.
  const int stride = p.sizes.stride, kernel = p.sizes.kernel, taps = (kernel + stride - 1) / stride;
  const int phases = stride * stride, n = tile + taps - 1;
  const Transforms transforms(tile, taps);
  std::vector<Matrix> weights;  // [output][input][phase]
  const int per_block = p.sizes.inputs_per_block();
  for (int i = 0; i < p.sizes.out * per_block * phases; ++i) {
    Matrix filter(taps, std::vector<double>(taps, 0.0));
    const float* from = &p.weight[std::size_t{1} * (i / phases) * kernel * kernel];
    for (int y = i % phases / stride; y < kernel; y += stride) {
      for (int x = i % stride; x < kernel; x += stride) filter[y / stride][x / stride] = from[y * kernel + x];
    }
    weights.push_back(sandwich(transforms.weight, filter, false));
  }
  std::vector<double> result(p.sums.sum.size());
  for (std::int64_t t = 0; t < p.tiles(tile); ++t) {
    const int columns = (p.width + tile - 1) / tile, rows = (p.height + tile - 1) / tile;
    const int image = t / (rows * columns), top = t / columns % rows * tile, left = t % columns * tile;
    std::vector<Matrix> inputs;  // [input][phase]
    for (int c = 0; c < p.sizes.in * phases; ++c) {
      Matrix patch(n, std::vector<double>(n, 0.0));
      for (int i = 0; i < n * n; ++i) {
        const int y = (top + i / n) * stride + c % phases / stride - p.sizes.pad_height;
        const int x = (left + i % n) * stride + c % stride - p.sizes.pad_width;
        const bool inside = y >= 0 && y < p.sizes.height && x >= 0 && x < p.sizes.width;
        if (inside) patch[i / n][i % n] = p.input.at(image, y, x)[c / phases];
      }
      inputs.push_back(sandwich(transforms.input, patch, true));
    }
    for (int o = 0; o < p.sizes.out; ++o) {
      Matrix products(n, std::vector<double>(n, 0.0));
      for (int c = 0; c < per_block * phases; ++c) {
        const Matrix& weight = weights[o * per_block * phases + c];
        const Matrix& input = inputs[p.input_of(o, c / phases) * phases + c % phases];
        for (int i = 0; i < n * n; ++i) {
          products[i / n][i % n] += std::abs(weight[i / n][i % n]) * input[i / n][i % n];
        }
      }
      const Matrix sums = sandwich(transforms.output, products, true);
      for (int y = top; y < std::min(top + tile, p.height); ++y) {
        for (int x = left; x < std::min(left + tile, p.width); ++x) {
          result[((std::int64_t{image} * p.height + y) * p.width + x) * p.sizes.out + o] = sums[y - top][x - left];
        }
      }
    }
  }
  return result;
}

// Roundings between an input, or a weight, and a result: at most four in each of the four passes of transforms, one of
// the weight, one of the product, and those of the sum.
inline double roundings(const Problem& p) {
  return 4 * 4 + 1 + p.sizes.inputs_per_block() * p.sizes.stride * p.sizes.stride + 1;
}

}  // namespace headgate
