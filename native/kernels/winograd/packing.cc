#include <algorithm>
#include <vector>

#include "kernels/winograd/layout.h"

namespace headgate {
namespace {

// Floats of transformed inputs and sums that stay in the second-level cache, beside the weights that pass through it.
constexpr std::int64_t kCached = 64 * 1024;

// With fewer tiles at a time, weights from farther away are read too often; with more, nothing is gained.
constexpr std::int64_t kFewestTiles = 12, kMostTiles = 168;

int elements(const WinogradShape& shape) { return (shape.tile + 2) * (shape.tile + 2); }

int vectors(int channels) { return padded_channels(channels) / kLanes; }

int inputs_per_block(const WinogradShape& shape) { return shape.in_channels / shape.blocks; }

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

}  // namespace

WinogradLayout winograd_layout(const WinogradShape& shape) {
  WinogradLayout layout{};
  const std::int64_t inputs = vectors(shape.in_channels), n = elements(shape);
  layout.tiles = kCached / (n * (inputs + kSumVectors) * kLanes);
  layout.tiles = std::clamp(layout.tiles, kFewestTiles, kMostTiles);
  layout.vector = layout.tiles * kLanes;
  layout.weight_element = std::int64_t{inputs_per_block(shape)} * kLanes;
  layout.panel = n * layout.weight_element;
  layout.input_element = (inputs * layout.tiles | 1) * kLanes;
  layout.sum_element = (kSumVectors * layout.tiles | 1) * kLanes;
  layout.sums = n * layout.input_element;
  layout.scratch = layout.sums + n * layout.sum_element;
  return layout;
}

std::int64_t winograd_scratch_size(const WinogradShape& shape) { return winograd_layout(shape).scratch; }

std::int64_t winograd_packed_size(const WinogradShape& shape) {
  return vectors(shape.out_channels) * winograd_layout(shape).panel;
}

// In float64: each weight is rounded once.
void winograd_pack(const WinogradShape& shape, const float* weight, float* packed) {
  const WinogradLayout layout = winograd_layout(shape);
  const std::vector<double> line = line_transform(shape.tile);
  const int size = shape.tile + 2;
  double filter[9][kLanes], rows[3][kLanes];  // of kLanes outputs: [row][column], and the transform of one row of it
  for (int vector = 0; vector < vectors(shape.out_channels); ++vector) {
    const int outputs = std::min(kLanes, shape.out_channels - vector * kLanes);
    for (int input = 0; input < inputs_per_block(shape); ++input) {
      float* to = packed + vector * layout.panel + input * std::int64_t{kLanes};
      std::fill_n(filter[0], 9 * kLanes, 0.0);
      for (int lane = 0; lane < outputs; ++lane) {
        const float* from = weight + ((std::int64_t{vector} * kLanes + lane) * inputs_per_block(shape) + input) * 9;
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

}  // namespace headgate
