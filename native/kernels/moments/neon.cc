#include <arm_neon.h>
#include <cstdint>

#include "kernels/moments/moments.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/moments/moments.inc"

const MomentsKernels kMoments = {{moments<float>, moments<Bf16>}};

}  // namespace

const MomentsKernels& moments_neon() { return kMoments; }

}  // namespace headgate
