// Maps of 8-bit numbers: how the integer kernels see their inputs, and the pass that makes them from float32 ones.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/map.h"

namespace headgate {

// Bytes for instructions that multiply unsigned by signed ones, four to a lane of 32 bits; 16-bit numbers where only
// those can be multiplied and added in pairs without overflow. Bytes hold q, 16-bit numbers q − zero: the same products
// either way, once a constant is added.
struct Int8Format {
  int lanes;     // sums of a vector
  int elements;  // products that a lane adds up in one instruction: 4 of bytes, 2 of 16-bit numbers

  [[gnu::always_inline]] constexpr int element_bytes() const { return 4 / elements; }
  [[gnu::always_inline]] constexpr bool biased() const { return elements == 4; }
};

// What lies behind the last element of a map, so that a full vector may be read from it.
constexpr std::int64_t kInt8Slack = 64;

// Rows [first_row, last_row) of images [first_image, last_image), with `border` columns of zeros on both sides; rows
// may lie outside of the images, and are zeros then. Strides in elements.
struct Int8Map {
  std::byte* data;  // of column −border of the first row, 64-byte aligned, kInt8Slack bytes longer than its elements
  std::int64_t image_stride, row_stride, pixel_stride;
  std::int64_t first_image, last_image;
  int first_row, last_row, border;
};

struct QuantiseArgs {
  Map input;
  Int8Map output;
  // The channel of every element of a pixel, or −1 for an element whose value does not matter; null: in their order.
  const std::int32_t* channel_at;
  // q = round( clamp(x / scale, −zero, 255 − zero) ) + zero, halves to even; NaN becomes the lowest number.
  float inverse_scale;
  int zero;
};

struct QuantiseKernels {
  Int8Format format;  // of all integer kernels of the instruction set
  void (*run)(const QuantiseArgs&);
};

const QuantiseKernels& quantise_portable();
const QuantiseKernels& quantise_avx2();
const QuantiseKernels& quantise_avx512();

}  // namespace headgate
