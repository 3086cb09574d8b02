#include <arm_neon.h>
#include <cstdint>

#include "kernels/depthwise/depthwise.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/depthwise/depthwise.inc"

}  // namespace

const DepthwiseKernels& depthwise_neon() { return kDepthwise; }

}  // namespace headgate
