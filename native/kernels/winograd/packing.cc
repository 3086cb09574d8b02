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

int elements(const WinogradShape& shape) { return (shape.tile + 2) * (shape.tile + 2); }

int vectors(int channels) { return padded_channels(channels) / kLanes; }

int outputs_per_block(const ConvShape& shape) { return shape.out_channels / shape.blocks; }

// The transform of a line of three weights, [element][weight]: the values of their polynomial at the points, divided by
// what the points contribute to interpolation.
std::vector<double> line_transform(int tile) {
  std::vector<double> points{0, 1, -1};
  if (tile == 4) points = {0, kFarPoint, -kFarPoint, kNearPoint, -kNearPoint};
  std::vector<double> transform;
  for (double point : points) {
    double divisor = 1;
    for (double other : points) divisor *= other == point ? 1 : point - other;
    transform.insert(transform.end(), {1 / divisor, point / divisor, point * point / divisor});
  }
  transform.insert(transform.end(), {0, 0, 1});
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
  std::vector<std::int32_t> channel;  // [block, or pair][input]: its place among the channels of the transformed inputs
  std::vector<std::int32_t> order;    // [channel]: from where in its vector each comes; empty if all stay in place
};

// Of blocks that are paired. None where the inputs of a pair do not lie in one vector, or those of several in the same lanes.
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
  return {shape.inputs, {}};
}

WinogradLayout layout_of(const WinogradShape& shape, const Inputs& inputs, int width) {
  WinogradLayout layout{};
  const ConvShape& conv = shape.conv;
  layout.scratch = winograd_scratch(shape);
  layout.paired = paired(conv, width);
  layout.run = std::max(1, padded_channels(conv.out_channels) / conv.blocks / width);
  layout.weight_element = std::int64_t{conv.inputs_per_block} * kLanes;
  layout.panel = elements(shape) * layout.weight_element;
  layout.weights = kHead;
  layout.inputs = layout.weights + vectors(conv.out_channels) * layout.panel;
  layout.order = layout.inputs + lines(static_cast<std::int64_t>(inputs.channel.size()));
  return layout;
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
  const std::int64_t inputs = vectors(shape.conv.in_channels), n = elements(shape);
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
  return layout_of(shape, inputs, kWidth).order + lines(static_cast<std::int64_t>(inputs.order.size()));
}

// In float64: each weight is rounded once.
template <int kWidth>
void winograd_pack(const WinogradShape& shape, const float* weight, float* packed) {
  const ConvShape& conv = shape.conv;
  Inputs inputs = inputs_of(conv, kWidth);
  const WinogradLayout layout = layout_of(shape, inputs, kWidth);
  std::fill_n(packed, layout.weights, 0.0f);
  std::fill(packed + layout.inputs, packed + winograd_packed_size<kWidth>(shape), 0.0f);
  std::memcpy(packed, &layout, sizeof layout);
  for (std::int32_t& channel : inputs.channel) {
    channel = static_cast<std::int32_t>(channel / kLanes * layout.scratch.vector + channel % kLanes);
  }
  put(inputs.channel, packed + layout.inputs);
  put(inputs.order, packed + layout.order);

  const std::vector<double> line = line_transform(shape.tile);
  const int size = shape.tile + 2;
  double filter[9][kLanes], rows[3][kLanes];  // of kLanes outputs: [row][column], and the transform of one row of it
  for (int vector = 0; vector < vectors(conv.out_channels); ++vector) {
    for (int input = 0; input < conv.inputs_per_block; ++input) {
      float* to = packed + layout.weights + vector * layout.panel + input * std::int64_t{kLanes};
      std::fill_n(filter[0], 9 * kLanes, 0.0);
      for (int lane = 0; lane < kLanes; ++lane) {
        const int output = vector * kLanes + (layout.paired ? in_turn(lane) : lane);
        if (output >= conv.out_channels) continue;
        const float* from = weight + (std::int64_t{output} * conv.inputs_per_block + input) * 9;
        for (int i = 0; i < 9; ++i) filter[i][lane] = from[i];
      }
      for (int y = 0; y < size; ++y) {
        const double* along = &line[3 * y];
        for (int x = 0; x < 3; ++x) {
          for (int lane = 0; lane < kLanes; ++lane) {
            rows[x][lane] =
                along[0] * filter[x][lane] + along[1] * filter[3 + x][lane] + along[2] * filter[6 + x][lane];
          }
        }
        for (int x = 0; x < size; ++x, to += layout.weight_element) {
          const double* across = &line[3 * x];
          for (int lane = 0; lane < kLanes; ++lane) {
            to[lane] = static_cast<float>(across[0] * rows[0][lane] + across[1] * rows[1][lane] +
                                          across[2] * rows[2][lane]);
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
