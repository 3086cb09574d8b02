// Convolutions, dense, in groups or gated, whose inputs and weights are rounded to narrow numbers: 8-bit integers
// (docs/design/0003-int8.md) or bfloat16 (docs/design/0005-bfloat16.md). What the kernels of every kind of number and
// instruction set provide, and what they are told: a pass that rounds a map, the convolution or base path, and the
// conditional path.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/conv/conv.h"
#include "kernels/map.h"

namespace headgate {

// How an instruction set holds the numbers. 8-bit integers: bytes for instructions that multiply unsigned by signed
// ones, 16 bits where only those can be multiplied and added in pairs without overflow. Bytes hold q, 16 bits q − zero:
// the same products either way, once a constant is added. bfloat16: as it is, or widened to the float32 of the same
// value where only that can be multiplied.
enum class NarrowElement { byte, word, bfloat16, float32 };

struct NarrowFormat {
  NarrowElement element;
  int lanes;  // sums of a vector, of 32 bits each
  bool tiles = false;  // blocks may be multiplied tile by tile

  constexpr int element_bytes() const {
    return element == NarrowElement::byte ? 1 : element == NarrowElement::float32 ? 4 : 2;
  }
  // Products that a lane adds up in one instruction.
  constexpr int elements() const { return 4 / element_bytes(); }
  // Products with weights of 0 are 0 whatever the input, so that inputs may be read that no output wants.
  constexpr bool integral() const { return element == NarrowElement::byte || element == NarrowElement::word; }
};

// A tile has so many pixels, or words of an input, or outputs.
constexpr int kTileRows = 16;

// What lies behind the last element of a map of integers, so that a full vector may be read from it.
constexpr std::int64_t kNarrowSlack = 64;

// Rows [first_row, last_row) of images [first_image, last_image), with `border` columns of zeros on both sides; rows
// may lie outside of the images, and are zeros then. Strides in elements.
struct NarrowMap {
  std::byte* data;  // of column −border of the first row, 64-byte aligned, kNarrowSlack bytes longer than its elements
  std::int64_t image_stride, row_stride, pixel_stride;
  std::int64_t first_image, last_image;
  int first_row, last_row, border;
  int height, width;  // of the images
};

// bfloat16: to the nearest, halves to even; NaN stays NaN. Integers:
// q = round( clamp(x / scale, −zero, 255 − zero) ) + zero, halves to even; NaN becomes the lowest number.
struct Rounding {
  float inverse_scale;  // of integers, as `zero`
  int zero;
};

struct RoundArgs {
  Map input;
  NarrowMap output;
  // The channel of every element of a pixel, or −1 for one that becomes 0; null: in their order.
  const std::int32_t* channel_at;
  Rounding rounding;
};

// Where outputs go rounded, in the kernels' own numbers and the order of their channels.
struct RoundedOutput {
  NarrowMap map;
  Rounding rounding;
};

// Adjacent outputs that read the same inputs. A lane of their vectors holds one output's products with one of `spread`
// adjacent words of inputs: few outputs fill a vector, too, if they have inputs enough.
struct NarrowBlock {
  int first_output, outputs;
  int spread;                 // a power of two, up to the lanes
  int vectors;                // of lanes / spread outputs each
  int steps;                  // of a kernel row; each reads `spread` words from every pixel
  int tap_steps;              // of each tap in a kernel row, where all have the same; else 0
  bool shared;                // three such taps lie in adjacent pixels: loads can serve all three
  bool tiled;                 // kTileRows steps after another read adjacent words: they are multiplied at once
  int alike;                  // blocks from this one on that differ in their places alone
  std::int64_t first_offset;  // of a kernel row's steps
  std::int64_t weights;       // bytes to [vector][kernel row][step][lane][element]
};

// Packed weights; owned by NarrowWeights (packing.h).
struct NarrowView {
  const NarrowBlock* blocks;
  int block_count;
  const std::int64_t* offsets;  // in elements, from a pixel's first tap in a kernel row
  const std::byte* weights;     // 64-byte aligned
  const std::int32_t* start;    // (padded channels): what sums of integers begin with
  bool frame_is_zero;           // taps in the frame add nothing, and may be left out
};

enum class NarrowEpilogue {
  plain,   // output = clamp( sum · scale + bias (+ residual) )
  gate,    // as Epilogue::gate
  group,   // one decision for adjacent channels: gain · Σ n > threshold
  masked,  // where masks has the bit: output, which holds the base path's sum P, becomes
           // clamp( (P + sum) · scale + bias (+ residual) ); elsewhere it is kept
};

// What follows a sum, which is converted to float32 first. Σ n of a group adds lanes half a group apart until one is
// left, where its size is a power of two; one after another elsewhere.
struct NarrowEnding {
  NarrowEpilogue kind;
  ConvEpilogue common;  // all but its kind
  const float* gain;    // group, (padded channels)
  int group_size;
  const RoundedOutput* rounded;  // or null; those that a gate leaves open hold nothing yet
};

// Output pixels are numbered through the batch: (image · height + y) · width + x.
struct NarrowConvArgs {
  const ConvShape* shape;
  NarrowView weights;
  NarrowMap input;  // has all that the pixels read
  Map output;       // without data if only what is rounded is wanted
  NarrowEnding ending;
  std::int64_t begin, end;  // pixels
  void* scratch;            // `conv_scratch_bytes`, 64-byte aligned; contents do not matter
};

// Completes the outputs that the gate left open, and only them. The output holds the base path's sum P, as float32,
// where the decision is open; it becomes clamp( (P + rest) · scale + bias (+ residual) ), rest being the sum over the
// inputs outside the output's base block.
struct NarrowConditionalArgs {
  const ConvShape* shape;
  NarrowView weights;  // a block for every decision
  NarrowMap input;     // has all that the pixels read
  Map output;
  const float *scale, *bias;  // (padded channels)
  float low, high;
  const Map* residual;           // or null
  const RoundedOutput* rounded;  // or null
  const std::uint16_t* masks;  // (images · pixels, padded_channels / 16), bit per channel; uniform in a decision
  std::int64_t begin, end;     // pixels, numbered through the batch
  void* scratch;               // `conditional_scratch_bytes`, 64-byte aligned; contents do not matter
};

struct NarrowKernels {
  NarrowFormat format;
  void (*round)(const RoundArgs&);
  // What stands for 0, in every byte of an element.
  int (*zero_byte)(const Rounding&);
  std::int64_t (*conv_scratch_bytes)(int out_channels);
  void (*conv)(const NarrowConvArgs&);
  std::int64_t (*conditional_scratch_bytes)(int out_channels, int decisions);
  void (*conditional)(const NarrowConditionalArgs&);
};

// Integer sums are exact, and what follows them is computed without fused multiply-adds: the results are the same bit
// for bit on every instruction set.
const NarrowKernels& int8_portable();
const NarrowKernels& int8_avx2();
const NarrowKernels& int8_avx512();  // with VNNI

// Every sum has an order that the convolution alone fixes, one for each instruction set.
const NarrowKernels& bfloat16_portable();
const NarrowKernels& bfloat16_avx2();
const NarrowKernels& bfloat16_avx512();
const NarrowKernels& bfloat16_amx();       // with AVX-512
const NarrowKernels& bfloat16_emulated();  // the same bits on emulated tiles; for tests alone

}  // namespace headgate
