#include <immintrin.h>
#include <cstdint>

#include "kernels/depthwise/depthwise.h"

#define HEADGATE_WIDTH 8

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/depthwise/depthwise.inc"

}  // namespace

const DepthwiseKernels& depthwise_avx2() { return kDepthwise; }

}  // namespace headgate
