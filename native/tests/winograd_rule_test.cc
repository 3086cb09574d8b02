// Which operators the engine computes by Winograd's algorithm.
#include "engine/winograd.h"

#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "tests/check.h"

namespace headgate {
namespace {

Plan plan_of(const Shape& input, const Shape& output) {
  Plan plan;
  plan.values = {input, output};
  return plan;
}

Op conv_of(const Shape& input) {
  Op op{};
  op.kind = OpKind::conv;
  op.inputs = {0}, op.output = 1;
  op.window = {{3, 3}, {1, 1}, {1, 1}, {1, 1}};
  op.groups = {1, input.channels, std::vector<std::int32_t>(static_cast<std::size_t>(input.channels))};
  std::iota(op.groups.channels.begin(), op.groups.channels.end(), 0);
  return op;
}

int tile_for(const Shape& input, const Shape& output, const Op& op) {
  const auto shape = winograd_shape(plan_of(input, output), op, op.groups);
  if (!shape) return 0;
  CHECK_EQ(shape->conv.in_channels, input.channels);
  CHECK_EQ(shape->conv.blocks, op.groups.blocks);
  CHECK_EQ(shape->conv.out_channels, output.channels);
  CHECK_EQ(shape->conv.padding[0], op.window.padding[0]);
  CHECK_EQ(shape->conv.padding[1], op.window.padding[1]);
  return shape->tile;
}

TEST(which_sizes) {
  const auto tile = [](int in, int out, int height, int width) {
    const Shape input{in, height, width}, output{out, height, width};
    return tile_for(input, output, conv_of(input));
  };
  for (const auto& [channels, size] : {std::pair{8, 8}, {16, 32}, {64, 8}, {64, 56}, {64, 112}, {128, 4}, {128, 28}}) {
    CHECK_EQ(tile(channels, channels, size, size), 4);
  }
  CHECK_EQ(tile(64, 1, 14, 14), 4);
  for (const auto& [channels, size] :
       {std::pair{64, 5}, {128, 6}, {129, 28}, {256, 7}, {256, 14}, {512, 8}, {512, 28}}) {
    CHECK_EQ(tile(channels, channels, size, size), 2);
  }
  for (const auto& [channels, size] : {std::pair{7, 32}, {64, 3}, {256, 3}, {512, 4}, {512, 7}}) {
    CHECK_EQ(tile(channels, channels, size, size), 0);
  }
  CHECK_EQ(tile(64, 64, 1, 64), 0);
}

TEST(which_operators) {
  const Shape input{32, 16, 16}, output{32, 16, 16};
  const Op op = conv_of(input);
  CHECK_EQ(tile_for(input, output, op), 4);
  const auto direct = [&](auto change) {
    Op other = op;
    change(other);
    CHECK_EQ(tile_for(input, output, other), 0);
  };
  direct([](Op& o) { o.int8 = InputRange{1.0f, 0}; });
  direct([](Op& o) { o.window.kernel = {5, 5}; });
  direct([](Op& o) { o.window.kernel = {3, 1}; });
  direct([](Op& o) { o.window.stride = {1, 2}; });
  direct([](Op& o) { o.window.dilation = {2, 1}; });
}

TEST(which_groups) {
  const auto tile = [](int in, int out, int blocks, int size) {
    const Shape input{in, size, size}, output{out, size, size};
    Op op = conv_of(input);
    op.groups.blocks = blocks, op.groups.per_block = in / blocks;
    return tile_for(input, output, op);
  };
  CHECK_EQ(tile(32, 32, 2, 16), 4);
  CHECK_EQ(tile(128, 128, 8, 16), 4);
  CHECK_EQ(tile(512, 512, 8, 4), 2);
  CHECK_EQ(tile(512, 512, 8, 3), 0);
  CHECK_EQ(tile(64, 64, 8, 16), 4);
  CHECK_EQ(tile(48, 32, 2, 16), 4);
  CHECK_EQ(tile(32, 48, 2, 16), 0);   // 24 outputs to a block
  CHECK_EQ(tile(32, 16, 2, 16), 0);   // the inputs of two that share a vector do not
  CHECK_EQ(tile(16, 16, 4, 16), 0);   // too few
}

TEST(which_inputs) {
  const Shape shape{64, 16, 16};
  const auto tile = [&](int blocks, auto input) {
    Op op = conv_of(shape);
    op.groups.blocks = blocks, op.groups.per_block = 64 / blocks;
    for (int i = 0; i < 64; ++i) op.groups.channels[i] = input(i);
    return tile_for(shape, shape, op);
  };
  const auto shuffled = [](int blocks) { return [blocks](int i) { return i % blocks * (64 / blocks) + i / blocks; }; };
  CHECK_EQ(tile(1, [](int i) { return 63 - i; }), 4);
  CHECK_EQ(tile(4, [](int i) { return 63 - i; }), 4);
  CHECK_EQ(tile(4, [](int i) { return i % 16; }), 4);  // all the same
  CHECK_EQ(tile(8, shuffled(8)), 4);
  CHECK_EQ(tile(8, [](int i) { return i % 16; }), 0);
  CHECK_EQ(tile(8, [&](int i) { return shuffled(8)(i) * 9 % 64; }), 0);
}

TEST(which_stems) {
  const auto tile = [](int in, int out, int height, int width, auto change) {
    const Shape input{in, height, width}, output{out, (height + 6 - 7) / 2 + 1, (width + 6 - 7) / 2 + 1};
    Op op = conv_of(input);
    op.window = {{7, 7}, {2, 2}, {3, 3}, {1, 1}};
    change(op);
    return tile_for(input, output, op);
  };
  const auto as_is = [](Op&) {};
  CHECK_EQ(tile(3, 64, 224, 224, as_is), 3);
  CHECK_EQ(tile(4, 32, 32, 32, as_is), 3);
  CHECK_EQ(tile(1, 64, 64, 48, as_is), 3);
  CHECK_EQ(tile(5, 64, 224, 224, as_is), 0);   // four times as many do not fit into a line
  CHECK_EQ(tile(3, 16, 224, 224, as_is), 0);
  CHECK_EQ(tile(3, 64, 1, 224, as_is), 0);     // tiles reach too far beyond
  CHECK_EQ(tile(3, 64, 224, 224, [](Op& o) { o.window.dilation = {2, 2}; }), 0);
  CHECK_EQ(tile(3, 64, 224, 224, [](Op& o) { o.window.stride = {2, 1}; }), 0);
  CHECK_EQ(tile(3, 64, 224, 224, [](Op& o) { o.window.kernel = {7, 5}; }), 0);
  CHECK_EQ(tile(4, 64, 224, 224, [](Op& o) { o.groups.blocks = 2, o.groups.per_block = 2; }), 0);
}

}  // namespace
}  // namespace headgate
