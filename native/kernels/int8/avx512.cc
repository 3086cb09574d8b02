#include <immintrin.h>
#include <cstdint>

#include "kernels/narrow/narrow.h"

#define HEADGATE_WIDTH 16

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/int8/numbers.inc"
#include "kernels/narrow/kernels.inc"

}  // namespace

const NarrowKernels& int8_avx512() { return kNarrow; }

}  // namespace headgate
