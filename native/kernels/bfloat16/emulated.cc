// AMX's tiles in plain C++, as Intel's manual describes TDPBF16PS: for tests where the CPU lacks them.
#include <immintrin.h>
#include <cstdint>

#include "kernels/narrow/narrow.h"

#define HEADGATE_WIDTH 16
#define HEADGATE_TILES

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"

union EmulatedTile {
  char bytes[16][64];
  uint16_t numbers[16][32];
  float sums[16][16];
};
EmulatedTile emulated[8];
bool configured = false;

void need(bool fulfilled) {
  if (!fulfilled) __builtin_trap();  // the CPU raises an exception
}

void tiles_begin() {
  configured = true;
  __builtin_memset(emulated, 0, sizeof emulated);
}
void tiles_end() { configured = false; }

template <int kTile>
void tile_zero() {
  need(configured);
  __builtin_memset(&emulated[kTile], 0, sizeof(EmulatedTile));
}
template <int kTile>
void tile_load(const void* rows, int64_t stride) {
  need(configured);
  for (int row = 0; row < 16; ++row) __builtin_memcpy(emulated[kTile].bytes[row], (const char*)rows + row * stride, 64);
}
template <int kTile>
void tile_store(void* rows, int64_t stride) {
  need(configured);
  for (int row = 0; row < 16; ++row) __builtin_memcpy((char*)rows + row * stride, emulated[kTile].bytes[row], 64);
}

// Denormal numbers are 0, before and after every operation.
float flushed(float x) { return __builtin_fabsf(x) < 0x1p-126f ? __builtin_copysignf(0.0f, x) : x; }

float widened(uint16_t number) {
  const uint32_t bits = (uint32_t)number << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return flushed(x);
}

template <int kSums, int kA, int kB>
void tile_dot() {
  need(configured);
  for (int m = 0; m < 16; ++m) {
    float even_odd[32] = {};
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 32; ++n) {
        const float a = widened(emulated[kA].numbers[m][2 * k + n % 2]), b = widened(emulated[kB].numbers[k][n]);
        even_odd[n] = flushed(__builtin_fmaf(a, b, even_odd[n]));
      }
    }
    for (int n = 0; n < 16; ++n) {
      const float both = flushed(even_odd[2 * n] + even_odd[2 * n + 1]);
      emulated[kSums].sums[m][n] = flushed(flushed(emulated[kSums].sums[m][n]) + both);
    }
  }
}

#include "kernels/bfloat16/numbers.inc"
#include "kernels/narrow/kernels.inc"

}  // namespace

const NarrowKernels& bfloat16_emulated() { return kNarrow; }

}  // namespace headgate
