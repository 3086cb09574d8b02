#include "kernels/conditional/layout.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace headgate {
namespace {

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int parts(int n, int most) { return (n + most - 1) / most; }
int even_share(int n, int most) { return parts(n, parts(n, most)); }

}  // namespace

PlaneBlocks plane_blocks(const ConvShape& shape) {
  PlaneBlocks b;
  b.taps = shape.kernel[0] * shape.kernel[1];
  b.planes = padded_channels(shape.in_channels) / kLanes;
  // A block's patch, and the weights of eight channels, should stay in the first cache; but sums over few taps are too
  // short to cut, and a kernel of extent 1 reads each input but once per output.
  const int most = b.taps == 1 ? 16 : b.taps <= 12 ? 4 : 2;
  b.size = even_share(b.planes, most);
  b.count = parts(b.planes, b.size);
  return b;
}

Tiling tiling(const ConvShape& shape, const Map& output) {
  const PlaneBlocks blocks = plane_blocks(shape);
  Tiling t;
  t.columns = even_share(output.width, std::max(8, kTilePixels / std::min(output.height, kTilePixels)));
  t.rows = even_share(output.height, kTilePixels / t.columns);
  const bool whole = t.rows == output.height && t.columns == output.width;
  t.images = whole ? kTilePixels / (t.rows * t.columns) : 1;

  t.direct = blocks.count == 1;
  for (int d = 0; d < 2; ++d) {
    t.step[d] = shape.kernel[d] == 1 && !t.direct ? shape.stride[d] : 1;
    t.stride[d] = shape.stride[d] / t.step[d];
  }
  t.patch_rows = (t.rows - 1) * t.stride[0] + (shape.kernel[0] - 1) * shape.dilation[0] + 1;
  t.patch_columns = (t.columns - 1) * t.stride[1] + (shape.kernel[1] - 1) * shape.dilation[1] + 1;
  t.patch_floats = t.direct ? 0 : std::int64_t{t.images} * t.patch_rows * t.patch_columns * kLanes * blocks.size;

  // As many tiles as leave room for weights in the second cache: those are read once for all of them.
  constexpr std::int64_t most_floats = 448 * 1024 / sizeof(float);
  t.held = 1;
  if (!t.direct) t.held = static_cast<int>(std::clamp<std::int64_t>(most_floats / t.patch_floats, 1, kMaxTiles));

  const int channels = padded_channels(shape.out_channels);
  t.taps = t.held * t.patch_floats * sizeof(float);
  t.words = t.taps + round_up(std::int64_t{blocks.taps} * (1 + blocks.size) * sizeof(std::int64_t), 64);
  t.sums = t.words + std::int64_t{t.held} * channels * sizeof(std::uint64_t);
  t.bytes = t.sums;
  // A vector more, as the last sums are read and written in full vectors.
  if (blocks.count > 1) t.bytes += (std::int64_t{t.held} * kTilePixels * channels + kLanes) * sizeof(float);
  return t;
}

std::int64_t packed_header(const ConvShape& shape) {
  return round_up(std::int64_t{plane_blocks(shape).count} * shape.out_channels, kLanes);
}

std::int64_t packed_size(const ConvShape& shape) {
  const PlaneBlocks blocks = plane_blocks(shape);
  return packed_header(shape) + std::int64_t{shape.out_channels} * blocks.planes * blocks.taps * kLanes;
}

void pack(const ConvShape& shape, const float* weight, float* packed) {
  const PlaneBlocks blocks = plane_blocks(shape);
  std::fill_n(packed, packed_size(shape), 0.0f);
  // Whether an input is in the base block of an output.
  const std::int64_t row_size = std::int64_t{blocks.planes} * kLanes;
  std::vector<char> in_base(shape.blocks * row_size);
  for (int j = 0; j < shape.blocks; ++j) {
    char* const row = &in_base[j * row_size];
    for (int i = 0; i < shape.inputs_per_block; ++i) row[shape.inputs[j * shape.inputs_per_block + i]] = 1;
    std::fill(row + shape.in_channels, row + row_size, 1);
  }

  float* to = packed + packed_header(shape);
  for (int b = 0; b < blocks.count; ++b) {
    const int planes = std::min(blocks.size, blocks.planes - b * blocks.size);
    for (int c = 0; c < shape.out_channels; ++c, to += std::int64_t{planes} * blocks.taps * kLanes) {
      const char* const row = &in_base[std::int64_t{c} * shape.blocks / shape.out_channels * row_size];
      std::uint32_t used = 0;
      float* plane_to = to;
      for (int p = 0; p < planes; ++p) {
        const int input = (b * blocks.size + p) * kLanes;
        for (int l = 0; l < kLanes; ++l) {
          if (row[input + l]) continue;
          used |= 1u << p;
          const float* from = weight + (std::int64_t{c} * shape.in_channels + input + l) * blocks.taps;
          for (int t = 0; t < blocks.taps; ++t) plane_to[t * kLanes + l] = from[t];
        }
        if (used >> p & 1) plane_to += blocks.taps * kLanes;
      }
      std::memcpy(packed + std::int64_t{b} * shape.out_channels + c, &used, sizeof used);
    }
  }
}

}  // namespace headgate
