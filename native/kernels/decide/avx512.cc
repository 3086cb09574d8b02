#include <immintrin.h>
#include <cstdint>

#include "kernels/decide/decide.h"

#define HEADGATE_WIDTH 16

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/decide/decide.inc"

}  // namespace

const DecideKernels& decide_avx512() { return kDecide; }

}  // namespace headgate
