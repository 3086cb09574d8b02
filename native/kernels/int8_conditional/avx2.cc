#include <immintrin.h>
#include <cstdint>

#include "kernels/int8_conditional/int8_conditional.h"

#define HEADGATE_WIDTH 8

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/int8_conditional/conditional.inc"

}  // namespace

const Int8ConditionalKernels& int8_conditional_avx2() { return kInt8Conditional; }

}  // namespace headgate
