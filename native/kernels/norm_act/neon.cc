#include <arm_neon.h>
#include <cstdint>

#include "kernels/norm_act/norm_act.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/norm_act/norm_act.inc"

}  // namespace

const NormActKernels& norm_act_neon() { return kNormAct; }

}  // namespace headgate
