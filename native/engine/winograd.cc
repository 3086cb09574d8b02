#include "engine/winograd.h"

#include <array>
#include <cstdint>

#include "engine/step.h"

namespace headgate {
namespace {

constexpr std::array<int, 2> kOnes{1, 1}, kThrees{3, 3};

// How many times fewer multiplications than products, padding at the map's edges included.
double saved(const Shape& output, int tile) {
  const auto tiles = [tile](int size) { return static_cast<double>((size + tile - 1) / tile); };
  return 9.0 * output.height * output.width / (tiles(output.height) * tiles(output.width) * (tile + 2) * (tile + 2));
}

// The rule, from the tables in docs/design/0004-winograd.md, for outputs that read so many inputs. Returns 4, 2, or 0 for
// the direct convolution.
int tile_of(int inputs, const Shape& output) {
  constexpr int kFewInputs = 8, kFewPixels = 16;  // below which transforms cost what they save
  constexpr double kWorthwhile = 1.5;
  // Transforming to tiles of 4 makes four times as many weights, of 2 nearly twice. Beyond so many input × output channels
  // that is too much memory for what it gains: for tiles of 4; and for any, of a map below so many pixels.
  constexpr std::int64_t kManyFilters = 128 * 128, kMostFilters = 256 * 256;
  constexpr std::int64_t kSmallMap = 64;

  const std::int64_t filters = std::int64_t{inputs} * output.channels;
  const std::int64_t pixels = std::int64_t{output.height} * output.width;
  if (inputs < kFewInputs || pixels < kFewPixels) return 0;
  if (filters > kMostFilters && pixels < kSmallMap) return 0;
  const int tile = filters <= kManyFilters && saved(output, 4) > saved(output, 2) ? 4 : 2;
  return saved(output, tile) < kWorthwhile ? 0 : tile;
}

}  // namespace

std::optional<WinogradShape> winograd_shape(const Plan& plan, const Op& op, const InputLists& lists) {
  const Window& window = op.window;
  if (op.narrow() || window.kernel != kThrees || window.stride != kOnes || window.dilation != kOnes) return std::nullopt;
  const int tile = tile_of(lists.per_block, plan.values[op.output]);
  if (tile == 0) return std::nullopt;
  WinogradShape shape{conv_shape(plan, op, lists), tile};
  if (!winograd_finds_inputs(shape.conv)) return std::nullopt;
  return shape;
}

}  // namespace headgate
