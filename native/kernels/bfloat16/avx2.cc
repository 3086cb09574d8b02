#include <immintrin.h>
#include <cstdint>

#include "kernels/narrow/narrow.h"

#define HEADGATE_WIDTH 8

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/bfloat16/numbers.inc"
#include "kernels/narrow/kernels.inc"

}  // namespace

const NarrowKernels& bfloat16_avx2() { return kNarrow; }

}  // namespace headgate
