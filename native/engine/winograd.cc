#include "engine/winograd.h"

#include <array>
#include <cstdint>

namespace headgate {
namespace {

constexpr std::array<int, 2> kOnes{1, 1}, kThrees{3, 3};

// Every output reads every input channel, in order.
bool dense(const InputLists& lists, int in_channels) {
  if (lists.blocks != 1 || lists.per_block != in_channels) return false;
  for (int i = 0; i < in_channels; ++i) {
    if (lists.channels[i] != i) return false;
  }
  return true;
}

// The rule, from the table in docs/design/0004-winograd.md. Returns 4, 2, or 0 for the direct convolution.
int tile_of(const Shape& input, const Shape& output) {
  constexpr int kNarrow = 16;                        // channels below which transforms cost too much
  constexpr std::int64_t kFewWeights = 128 * 128;    // up to which four times the weights are worth their memory
  constexpr std::int64_t kManyWeights = 384 * 384;   // from which a small map waits for weights
  constexpr std::int64_t kSmallMap = 100;            // pixels
  const std::int64_t filters = std::int64_t{input.channels} * output.channels;
  const std::int64_t pixels = std::int64_t{output.height} * output.width;
  if (input.channels < kNarrow || output.channels < kNarrow) return 0;
  if (filters <= kFewWeights) return 4;
  return filters >= kManyWeights && pixels <= kSmallMap ? 0 : 2;
}

}  // namespace

std::optional<WinogradShape> winograd_shape(const Plan& plan, const Op& op) {
  const Window& window = op.window;
  const Shape &input = plan.values[op.inputs[0]], &output = plan.values[op.output];
  if (op.kind != OpKind::conv || op.int8 || window.kernel != kThrees || window.stride != kOnes ||
      window.dilation != kOnes || !dense(op.groups, input.channels)) {
    return std::nullopt;
  }
  const int tile = tile_of(input, output);
  if (tile == 0) return std::nullopt;
  return WinogradShape{input.channels, output.channels, {window.padding[0], window.padding[1]}, tile};
}

}  // namespace headgate
