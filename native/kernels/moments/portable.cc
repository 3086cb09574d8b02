#include <cstdint>

#include "kernels/moments/moments.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/moments/moments.inc"

const MomentsKernels kMoments = {{moments<float>, moments<Bf16>}};

}  // namespace

const MomentsKernels& moments_portable() { return kMoments; }

}  // namespace headgate
