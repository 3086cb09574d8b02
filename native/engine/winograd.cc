#include "engine/winograd.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "engine/step.h"

namespace headgate {
namespace {

constexpr double kWorthwhile = 1.5;

// How many times fewer multiplications than products, of so many for each output; padding at the map's edges included.
double saved(const Shape& output, int tile, int products, int multiplications) {
  const auto tiles = [tile](int size) { return static_cast<double>((size + tile - 1) / tile); };
  return 1.0 * products * output.height * output.width /
         (tiles(output.height) * tiles(output.width) * multiplications);
}

// The rule for 3×3 kernels, from the tables in docs/design/0004-winograd.md, for outputs that read so many inputs.
// Returns 4, 2, or 0 for the direct convolution.
int tile_of(int inputs, const Shape& output) {
  constexpr int kFewInputs = 8, kFewPixels = 16;  // below which transforms cost what they save
  // Transforming to tiles of 4 makes four times as many weights, of 2 nearly twice. Beyond so many input × output channels
  // that is too much memory for what it gains: for tiles of 4; and for any, of a map below so many pixels.
  constexpr std::int64_t kManyFilters = 128 * 128, kMostFilters = 256 * 256;
  constexpr std::int64_t kSmallMap = 64;

  const std::int64_t filters = std::int64_t{inputs} * output.channels;
  const std::int64_t pixels = std::int64_t{output.height} * output.width;
  if (inputs < kFewInputs || pixels < kFewPixels) return 0;
  if (filters > kMostFilters && pixels < kSmallMap) return 0;
  const double saved_2 = saved(output, 2, 9, 16), saved_4 = saved(output, 4, 9, 36);
  const int tile = filters <= kManyFilters && saved_4 > saved_2 ? 4 : 2;
  return (tile == 4 ? saved_4 : saved_2) < kWorthwhile ? 0 : tile;
}

// The same for 7×7 kernels of stride 2: 3 or 0.
int tile_of_stem(int in_channels, const Shape& output) {
  constexpr int kFewOutputs = 32;  // below which gathering and transforming inputs costs what is saved
  if (in_channels > kPhaseChannels || output.channels < kFewOutputs) return 0;
  return saved(output, 3, 49, 4 * 36) < kWorthwhile ? 0 : 3;
}

}  // namespace

std::optional<WinogradShape> winograd_shape(const Plan& plan, const Op& op, const InputLists& lists) {
  using Pair = std::array<int, 2>;
  const Window& window = op.window;
  const Shape& output = plan.values[op.output];
  if (op.narrow() || window.dilation != Pair{1, 1}) return std::nullopt;
  int tile = 0;
  if (window.kernel == Pair{3, 3} && window.stride == Pair{1, 1}) tile = tile_of(lists.per_block, output);
  if (window.kernel == Pair{7, 7} && window.stride == Pair{2, 2} && lists.blocks == 1) {
    tile = tile_of_stem(plan.values[op.inputs[0]].channels, output);
  }
  if (tile == 0) return std::nullopt;
  WinogradShape shape{conv_shape(plan, op, lists), tile};
  if (!winograd_finds_inputs(shape.conv)) return std::nullopt;
  return shape;
}

}  // namespace headgate
