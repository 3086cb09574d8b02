// The shapes that every kind of narrow number is tested on.
#pragma once

#include <functional>
#include <numeric>

#include "tests/narrow_problem.h"

namespace headgate {

using Check = std::function<void(const NarrowProblem&)>;

enum class Lists { contiguous, shuffled, any, first };

inline ConvShape shape_of(int in, int out, int blocks, Lists lists, int kh = 3, int kw = 3, int sh = 1, int sw = 1,
                          int ph = 1, int pw = 1, int dh = 1, int dw = 1) {
  ConvShape shape{in, out, {kh, kw}, {sh, sw}, {ph, pw}, {dh, dw}, blocks, std::max(1, in / blocks), {}};
  if (lists == Lists::first) shape.inputs_per_block = std::max(1, in / 4);
  std::mt19937 random(in * 31 + out);
  for (int block = 0; block < blocks; ++block) {
    std::vector<int> channels(in);
    std::iota(channels.begin(), channels.end(), 0);
    if (lists == Lists::any) std::shuffle(channels.begin(), channels.end(), random);
    for (int i = 0; i < shape.inputs_per_block; ++i) {
      const int channel = lists == Lists::contiguous ? block * shape.inputs_per_block + i
                          : lists == Lists::shuffled ? i * blocks + block
                                                     : channels[i];
      shape.inputs.push_back(channel % in);
    }
  }
  return shape;
}

inline void channels_and_groups(Numbers numbers, const Check& check) {
  for (int zero : {0, 77}) {
    for (int channels : {8, 16, 24, 40, 64}) {
      for (Lists lists : {Lists::contiguous, Lists::shuffled, Lists::any}) {
        check(NarrowProblem(numbers, shape_of(channels, channels, 8, lists), 1, 5, 6, 8, zero));
        check(NarrowProblem(numbers, shape_of(channels, channels, 4, lists), 1, 5, 6, channels, zero));
      }
      check(NarrowProblem(numbers, shape_of(channels, channels, 1, Lists::first), 1, 4, 5, 8, zero));
      check(NarrowProblem(numbers, shape_of(channels, channels, 4, Lists::contiguous), 1, 4, 5, 2, zero));
    }
  }
}

inline void channels_that_are_picked_one_by_one(Numbers numbers, const Check& check) {
  check(NarrowProblem(numbers, shape_of(144, 16, 8, Lists::shuffled), 1, 3, 4, 8, 7));
}

inline void dense_convolutions_of_any_channels(Numbers numbers, const Check& check) {
  for (int in : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65}) {
    for (int out : {1, 2, 7, 8, 9, 15, 16, 17, 31, 33}) {
      check(NarrowProblem(numbers, shape_of(in, out, 1, Lists::contiguous), 1, 3, 4, 1, 3));
    }
  }
}

inline void groups_of_every_size(Numbers numbers, const Check& check) {
  for (int size : {1, 2, 3, 4, 5, 8, 12, 16, 20, 32, 48, 64, 128}) {
    check(NarrowProblem(numbers, shape_of(16, 2 * size, 2, Lists::contiguous, 1, 1, 1, 1, 0, 0), 1, 4, 5, 2, 9));
  }
}

inline void pixels_of_every_tile(Numbers numbers, const Check& check) {
  for (int width = 1; width <= 33; ++width) {
    check(NarrowProblem(numbers, shape_of(16, 16, 2, Lists::shuffled), 1, 1, width, 2, 5));
    check(NarrowProblem(numbers, shape_of(16, 48, 1, Lists::first), 1, 1, width, 3, 5));
  }
}

inline void batches(Numbers numbers, const Check& check) {
  for (int images = 1; images <= 33; ++images) {
    check(NarrowProblem(numbers, shape_of(16, 16, 4, Lists::shuffled), images, 3, 2, 4, 5));
  }
}

// With 16 outputs and 32 inputs at least, as tiles want them; more of them than tiles hold at a time.
inline void wide_blocks(Numbers numbers, const Check& check) {
  for (Lists lists : {Lists::contiguous, Lists::shuffled}) {
    check(NarrowProblem(numbers, shape_of(64, 64, 2, lists), 2, 5, 8, 2));
    check(NarrowProblem(numbers, shape_of(96, 80, 2, lists, 3, 3, 2, 2), 1, 9, 7, 4));
    check(NarrowProblem(numbers, shape_of(80, 40, 2, lists, 1, 1, 1, 1, 0, 0), 3, 4, 5, 2));
    check(NarrowProblem(numbers, shape_of(128, 64, 4, lists, 1, 3, 1, 1, 0, 2, 1, 2), 1, 2, 33, 4));
  }
  check(NarrowProblem(numbers, shape_of(33, 230, 1, Lists::contiguous), 1, 4, 17, 1));
  check(NarrowProblem(numbers, shape_of(70, 112, 1, Lists::first), 1, 4, 17, 7));
}

inline void windows(Numbers numbers, const Check& check) {
  struct Window {
    int kernel[2], stride[2], padding[2], dilation[2];
  };
  for (const Window& w : {Window{{1, 1}, {1, 1}, {0, 0}, {1, 1}}, Window{{1, 1}, {2, 2}, {0, 0}, {1, 1}},
                          Window{{3, 3}, {2, 2}, {1, 1}, {1, 1}}, Window{{3, 3}, {1, 1}, {0, 0}, {1, 1}},
                          Window{{3, 3}, {1, 1}, {2, 2}, {2, 2}}, Window{{3, 1}, {1, 2}, {1, 0}, {1, 3}},
                          Window{{1, 5}, {1, 1}, {0, 2}, {1, 1}}, Window{{5, 3}, {3, 2}, {4, 0}, {2, 3}},
                          Window{{7, 7}, {2, 2}, {3, 3}, {1, 1}}, Window{{2, 2}, {1, 1}, {1, 1}, {1, 1}}}) {
    for (Lists lists : {Lists::contiguous, Lists::shuffled}) {
      for (int blocks : {1, 4}) {
        check(NarrowProblem(numbers,
                            shape_of(16, 20, blocks, lists, w.kernel[0], w.kernel[1], w.stride[0], w.stride[1],
                                     w.padding[0], w.padding[1], w.dilation[0], w.dilation[1]),
                            2, 11, 10, 4, 6));
      }
    }
  }
}

}  // namespace headgate
