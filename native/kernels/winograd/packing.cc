#include <algorithm>
#include <cstring>
#include <optional>
#include <vector>

#include "kernels/winograd/layout.h"

namespace headgate {
namespace {

// Floats of transformed inputs and sums that stay in the second-level cache, beside the weights that pass through it.
constexpr std::int64_t kCached = 64 * 1024;

// With fewer tiles at a time, weights from farther away are read too often; with more, nothing is gained.
constexpr std::int64_t kFewestTiles = 12, kMostTiles = 168;

constexpr std::int64_t lines(std::int64_t floats) { return (floats + kLanes - 1) / kLanes * kLanes; }
constexpr std::int64_t kHead = lines(sizeof(WinogradLayout) / sizeof(float));
static_assert(sizeof(WinogradLayout) % sizeof(float) == 0);

int elements(const WinogradShape& shape) { return winograd_side(shape.tile) * winograd_side(shape.tile); }

int vectors(int channels) { return padded_channels(channels) / kLanes; }

int outputs_per_block(const ConvShape& shape) { return shape.out_channels / shape.blocks; }

// A stride of s makes s² convolutions of stride 1, of so many taps to a line; each step of the sum has an input of one.
int phases(const ConvShape& shape) { return shape.stride[0] * shape.stride[1]; }

int taps(const ConvShape& shape) { return (shape.kernel[0] + shape.stride[0] - 1) / shape.stride[0]; }

int steps(const ConvShape& shape) { return phases(shape) * shape.inputs_per_block; }

int channels(const ConvShape& shape) { return phases(shape) == 1 ? shape.in_channels : kLanes; }

// The transform of a line of weights, [element][weight]: the values of their polynomial at the points, divided by what
// the points contribute to interpolation.
std::vector<double> line_transform(int tile, int weights) {
  std::vector<double> points{0, 1, -1};
  if (winograd_side(tile) == 6) points = {0, kFarPoint, -kFarPoint, kNearPoint, -kNearPoint};
  std::vector<double> transform;
  for (double point : points) {
    double value = 1;
    for (double other : points) value /= other == point ? 1 : point - other;
    for (int i = 0; i < weights; ++i, value *= point) transform.push_back(value);
  }
  for (int i = 0; i < weights; ++i) transform.push_back(i == weights - 1);
  return transform;
}

constexpr int kPair = 2;  // blocks in a vector

bool paired(const ConvShape& shape, int width) {
  return shape.blocks > 1 && outputs_per_block(shape) * kPair == kLanes && width == kLanes;
}

// The output at a lane of vectors that two blocks share: theirs in turn.
int in_turn(int lane) { return lane % kPair * (kLanes / kPair) + lane / kPair; }

// Where a run finds its inputs.
struct Inputs {
  std::vector<std::int32_t> channel;  // [block, or pair][step]: its input's place among the transformed channels
  std::vector<std::int32_t> order;    // [channel]: from where in its vector each comes; empty if all stay in place
};

// Of blocks that are paired. None where the inputs of a pair do not lie in one vector, or those of several in the same
// lanes.
std::optional<Inputs> inputs_of_pairs(const ConvShape& shape) {
  Inputs inputs;
  inputs.order.resize(padded_channels(shape.in_channels));
  std::vector<int> taken(vectors(shape.in_channels));  // lanes of each vector
  for (int block = 0; block < shape.blocks; block += kPair) {
    const std::int32_t* of[kPair];
    for (int i = 0; i < kPair; ++i) of[i] = shape.inputs.data() + std::int64_t{block + i} * shape.inputs_per_block;
    for (int input = 0; input < shape.inputs_per_block; ++input) {
      const int vector = of[0][input] / kLanes, at = vector * kLanes + taken[vector];
      if (of[1][input] / kLanes != vector || taken[vector] == kLanes) return std::nullopt;
      for (int i = 0; i < kPair; ++i) inputs.order[at + i] = of[i][input] % kLanes;
      inputs.channel.push_back(at);
      taken[vector] += kPair;
    }
  }
  return inputs;
}

Inputs inputs_of(const ConvShape& shape, int width) {
  if (paired(shape, width)) return *inputs_of_pairs(shape);
  Inputs inputs;
  for (int block = 0; block < shape.blocks; ++block) {
    for (int phase = 0; phase < phases(shape); ++phase) {
      for (int i = 0; i < shape.inputs_per_block; ++i) {
        inputs.channel.push_back(phase * kPhaseChannels + shape.inputs[block * shape.inputs_per_block + i]);
      }
    }
  }
  return inputs;
}

WinogradLayout layout_of(const WinogradShape& shape, const Inputs& inputs, int width) {
  WinogradLayout layout{};
  const ConvShape& conv = shape.conv;
  layout.scratch = winograd_scratch(shape);
  layout.paired = paired(conv, width);
  layout.run = std::max(1, padded_channels(conv.out_channels) / conv.blocks / width);
  layout.steps = steps(conv);
  layout.weight_element = std::int64_t{layout.steps} * kLanes;
  layout.panel = elements(shape) * layout.weight_element;
  layout.weights = kHead;
  layout.inputs = layout.weights + vectors(conv.out_channels) * layout.panel;
  layout.order = layout.inputs + lines(static_cast<std::int64_t>(inputs.channel.size()));
  return layout;
}

std::int64_t size_of(const WinogradLayout& layout, const Inputs& inputs) {
  return layout.order + lines(static_cast<std::int64_t>(inputs.order.size()));
}

void put(const std::vector<std::int32_t>& numbers, float* to) {
  if (!numbers.empty()) std::memcpy(to, numbers.data(), numbers.size() * sizeof numbers[0]);
}

}  // namespace

bool winograd_finds_inputs(const ConvShape& shape) {
  if (shape.blocks == 1 || outputs_per_block(shape) % kLanes == 0) return true;
  return paired(shape, kLanes) && shape.blocks % kPair == 0 && inputs_of_pairs(shape);
}

WinogradScratch winograd_scratch(const WinogradShape& shape) {
  WinogradScratch scratch{};
  const std::int64_t inputs = vectors(channels(shape.conv)), n = elements(shape);
  scratch.tiles = kCached / (n * (inputs + kSumVectors) * kLanes);
  scratch.tiles = std::clamp(scratch.tiles, kFewestTiles, kMostTiles);
  scratch.vector = scratch.tiles * kLanes;
  scratch.input_element = (inputs * scratch.tiles | 1) * kLanes;
  scratch.sum_element = (kSumVectors * scratch.tiles | 1) * kLanes;
  scratch.sums = n * scratch.input_element;
  scratch.size = scratch.sums + n * scratch.sum_element;
  return scratch;
}

std::int64_t winograd_scratch_size(const WinogradShape& shape) { return winograd_scratch(shape).size; }

template <int kWidth>
std::int64_t winograd_packed_size(const WinogradShape& shape) {
  const Inputs inputs = inputs_of(shape.conv, kWidth);
  return size_of(layout_of(shape, inputs, kWidth), inputs);
}

// In float64: each weight is rounded once.
template <int kWidth>
void winograd_pack(const WinogradShape& shape, const float* weight, float* packed) {
  const ConvShape& conv = shape.conv;
  Inputs inputs = inputs_of(conv, kWidth);
  const WinogradLayout layout = layout_of(shape, inputs, kWidth);
  std::fill_n(packed, layout.weights, 0.0f);
  std::fill(packed + layout.inputs, packed + size_of(layout, inputs), 0.0f);
  std::memcpy(packed, &layout, sizeof layout);
  for (std::int32_t& channel : inputs.channel) {
    channel = static_cast<std::int32_t>(channel / kLanes * layout.scratch.vector + channel % kLanes);
  }
  put(inputs.channel, packed + layout.inputs);
  put(inputs.order, packed + layout.order);

  constexpr int kMostTaps = 4;
  const int side = winograd_side(shape.tile), n = taps(conv), kernel = conv.kernel[0], stride = conv.stride[0];
  const std::vector<double> line = line_transform(shape.tile, n);
  double filter[kMostTaps][kMostTaps][kLanes], rows[kMostTaps][kLanes];  // of kLanes outputs, and a row's transform
  for (int vector = 0; vector < vectors(conv.out_channels); ++vector) {
    for (int step = 0; step < layout.steps; ++step) {
      const int phase = step / conv.inputs_per_block, input = step % conv.inputs_per_block;
      std::fill_n(filter[0][0], kMostTaps * kMostTaps * kLanes, 0.0);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int output = vector * kLanes + (layout.paired ? in_turn(lane) : lane);
        if (output >= conv.out_channels) continue;
        const float* from = weight + (std::int64_t{output} * conv.inputs_per_block + input) * kernel * kernel;
        for (int y = phase / stride; y < kernel; y += stride) {
          for (int x = phase % stride; x < kernel; x += stride) {
            filter[y / stride][x / stride][lane] = from[y * kernel + x];
          }
        }
      }
      float* to = packed + layout.weights + vector * layout.panel + step * std::int64_t{kLanes};
      for (int y = 0; y < side; ++y) {
        for (int x = 0; x < n; ++x) {
          for (int lane = 0; lane < kLanes; ++lane) {
            rows[x][lane] = 0;
            for (int i = 0; i < n; ++i) rows[x][lane] += line[n * y + i] * filter[i][x][lane];
          }
        }
        for (int x = 0; x < side; ++x, to += layout.weight_element) {
          for (int lane = 0; lane < kLanes; ++lane) {
            double sum = 0;
            for (int i = 0; i < n; ++i) sum += line[n * x + i] * rows[i][lane];
            to[lane] = static_cast<float>(sum);
          }
        }
      }
    }
  }
}

template std::int64_t winograd_packed_size<4>(const WinogradShape&);
template std::int64_t winograd_packed_size<8>(const WinogradShape&);
template std::int64_t winograd_packed_size<16>(const WinogradShape&);
template void winograd_pack<4>(const WinogradShape&, const float*, float*);
template void winograd_pack<8>(const WinogradShape&, const float*, float*);
template void winograd_pack<16>(const WinogradShape&, const float*, float*);

}  // namespace headgate
