// Decisions that need more than one output's partial sum: what the kernels of every instruction set provide.
#pragma once

#include <cstdint>

#include "kernels/map.h"

namespace headgate {

// With n = sum · score_scale + score_bias, or center − |…| where two-sided. Arrays are per channel, padded with zeros.
struct Score {
  const float *scale, *bias;
  bool two_sided;
  float center;
};

// What a closed output becomes: clamp( sum · scale + bias (+ residual) ).
struct Closed {
  const float *scale, *bias;
  float low, high;
  const Map* residual;  // or null
};

struct DecideArgs {
  Map output;  // holds the base path's sums; closed outputs are finished in place
  Score score;
  Closed closed;
  // Per channel, and the same for all channels of a group: open = gain · Σ_group n > threshold.
  const float *gain, *threshold;
  int group_size;
  std::uint16_t* masks;     // (images · pixels, padded channels / 16), written
  std::int64_t begin, end;  // pixels, numbered through the batch
  float* scratch;           // (padded channels)
};

struct DecideKernels {
  // Of groups of any size; those whose size divides a vector's lanes are decided with the base path (conv.h).
  void (*group)(const DecideArgs&);
  // Adds Σ n over the pixels [begin, end) of one image to `sums` (padded channels), in an order that the range sets.
  void (*sum_scores)(const Map& output, const Score& score, std::int64_t begin, std::int64_t end, float* sums);
  // Finishes the closed outputs of one image: those whose channel has no bit in `open` (padded channels / 16 words) but
  // one in the pixel's mask; the pixel's masks lose these bits.
  void (*close)(const Map& output, const Closed& closed, std::int64_t image, const std::uint16_t* open,
                std::uint16_t* masks);
  // Bits that are set in `words` words.
  std::int64_t (*count)(const std::uint16_t* masks, std::int64_t words);
};

const DecideKernels& decide_portable();
const DecideKernels& decide_neon();
const DecideKernels& decide_avx2();
const DecideKernels& decide_avx512();

}  // namespace headgate
