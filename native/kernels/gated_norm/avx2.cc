#include <immintrin.h>
#include <cstdint>

#include "kernels/gated_norm/gated_norm.h"

#define HEADGATE_WIDTH 8

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/gated_norm/groups.inc"
#include "kernels/gated_norm/gated_norm.inc"

}  // namespace

const GatedNormKernels& gated_norm_avx2() { return kGatedNorm; }

}  // namespace headgate
