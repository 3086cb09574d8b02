#include <arm_neon.h>
#include <cstdint>

#include "kernels/gated_norm/gated_norm.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/gated_norm/groups.inc"
#include "kernels/gated_norm/gated_norm.inc"

}  // namespace

const GatedNormKernels& gated_norm_neon() { return kGatedNorm; }

}  // namespace headgate
