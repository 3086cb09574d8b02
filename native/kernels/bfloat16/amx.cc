#include <immintrin.h>
#include <cstdint>

#include "kernels/narrow/narrow.h"
#include "runtime/amx.h"

#define HEADGATE_WIDTH 16
#define HEADGATE_TILES

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"

// The instructions themselves: compilers' intrinsics take no template's number.
HEADGATE_INLINE void tiles_begin() {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  } const all;
  asm volatile("ldtilecfg %0" : : "m"(all));
}
HEADGATE_INLINE void tiles_end() { asm volatile("tilerelease"); }

template <int kTile>
HEADGATE_INLINE void tile_zero() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTile));
}
template <int kTile>
HEADGATE_INLINE void tile_load(const void* rows, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
HEADGATE_INLINE void tile_store(void* rows, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kSums, int kA, int kB>
HEADGATE_INLINE void tile_dot() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kA), "i"(kB));
}

#include "kernels/bfloat16/numbers.inc"
#include "kernels/narrow/kernels.inc"

}  // namespace

const NarrowKernels& bfloat16_amx() { return kNarrow; }

bool amx_multiplies() {
  uint16_t a[16][32], b[16][32];
  float sums[16][16];
  const auto small = [](int n) { return narrow(splat((float)(n % 13 - 6)))[0]; };  // whose sums are exact
  for (int i = 0; i < 16 * 32; ++i) a[i / 32][i % 32] = small(i * 7), b[i / 32][i % 32] = small(i * 5 + 3);
  tiles_begin();
  tile_zero<0>();
  tile_load<6>(a, 64);
  tile_load<7>(b, 64);
  tile_dot<0, 6, 7>();
  tile_store<0>(sums, 64);
  tiles_end();
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 16; ++j) {
      float sum = 0;
      for (int k = 0; k < 32; ++k) {
        sum += (float)((i * 32 + k) * 7 % 13 - 6) * (float)(((k / 2 * 32 + 2 * j + k % 2) * 5 + 3) % 13 - 6);
      }
      if (sums[i][j] != sum) return false;
    }
  }
  return true;
}

}  // namespace headgate
