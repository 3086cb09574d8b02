#include <immintrin.h>
#include <cstdint>

#include "kernels/moments/moments.h"

#define HEADGATE_WIDTH 16

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/moments/moments.inc"

const MomentsKernels kMoments = {{moments<float>, moments<Bf16>}};

}  // namespace

const MomentsKernels& moments_avx512() { return kMoments; }

}  // namespace headgate
