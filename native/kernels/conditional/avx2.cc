#include <immintrin.h>
#include <cstdint>

#include "kernels/conditional/conditional.h"
#include "kernels/conditional/layout.h"

#define HEADGATE_WIDTH 8

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/conditional/reduce.inc"
#include "kernels/conditional/tile.inc"
#include "kernels/conditional/kernels.inc"

}  // namespace

const ConditionalKernels& conditional_activation_avx2() { return kActivation; }
const ConditionalKernels& conditional_group_avx2() { return kGroup; }

}  // namespace headgate
