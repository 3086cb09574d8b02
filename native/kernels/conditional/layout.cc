#include "kernels/conditional/layout.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace headgate {
namespace {

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
int parts(int n, int most) { return (n + most - 1) / most; }
int even_share(int n, int most) { return parts(n, parts(n, most)); }

// Which inputs the conditional path of an output block leaves out: those of its base block, and those that only fill
// the last plane. And the planes of nothing else.
class LeftOut {
 public:
  explicit LeftOut(const ConvShape& shape)
      : row_(padded_channels(shape.in_channels)), inputs_(shape.blocks * row_), planes_(shape.blocks * row_ / kLanes) {
    for (int block = 0; block < shape.blocks; ++block) {
      const auto row = inputs_.begin() + block * row_;
      for (int i = 0; i < shape.inputs_per_block; ++i) {
        row[shape.inputs[std::int64_t{block} * shape.inputs_per_block + i]] = true;
      }
      std::fill(row + shape.in_channels, row + row_, true);
      for (std::int64_t first = 0; first < row_; first += kLanes) {
        planes_[(block * row_ + first) / kLanes] = std::find(row + first, row + first + kLanes, false) == row + first + kLanes;
      }
    }
  }

  bool input(int block, int input) const { return inputs_[block * row_ + input]; }
  bool plane(int block, int plane) const { return planes_[block * row_ / kLanes + plane]; }

 private:
  std::int64_t row_;
  std::vector<bool> inputs_, planes_;
};

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
  const std::int64_t entries = std::int64_t{shape.out_channels} * plane_blocks(shape).count;
  return round_up(entries * static_cast<std::int64_t>(sizeof(PackedPlanes) / sizeof(float)), kLanes);
}

std::int64_t packed_size(const ConvShape& shape) {
  const PlaneBlocks blocks = plane_blocks(shape);
  const LeftOut left_out(shape);
  std::int64_t used = 0;
  for (int block = 0; block < shape.blocks; ++block) {
    for (int plane = 0; plane < blocks.planes; ++plane) used += left_out.plane(block, plane) ? 0 : 1;
  }
  return packed_header(shape) + used * (shape.out_channels / shape.blocks) * blocks.taps * kLanes;
}

void pack(const ConvShape& shape, const float* weight, float* packed) {
  const PlaneBlocks blocks = plane_blocks(shape);
  const LeftOut left_out(shape);
  std::fill_n(packed, packed_size(shape), 0.0f);
  float* entry = packed;
  float* const begin = packed + packed_header(shape);
  float* to = begin;
  for (int first = 0; first < blocks.planes; first += blocks.size) {
    const int last = std::min(first + blocks.size, blocks.planes);
    for (int c = 0; c < shape.out_channels; ++c, entry += sizeof(PackedPlanes) / sizeof(float)) {
      const int block = static_cast<int>(std::int64_t{c} * shape.blocks / shape.out_channels);
      PackedPlanes planes{0, static_cast<std::uint32_t>((to - begin) / kLanes)};
      for (int plane = first; plane < last; ++plane) {
        if (left_out.plane(block, plane)) continue;
        planes.used |= 1u << (plane - first);
        for (int l = 0; l < kLanes; ++l) {
          const int input = plane * kLanes + l;
          if (left_out.input(block, input)) continue;
          const float* from = weight + (std::int64_t{c} * shape.in_channels + input) * blocks.taps;
          for (int t = 0; t < blocks.taps; ++t) to[t * kLanes + l] = from[t];
        }
        to += std::int64_t{blocks.taps} * kLanes;
      }
      std::memcpy(entry, &planes, sizeof planes);
    }
  }
}

}  // namespace headgate
