#include <cstdint>

#include "kernels/depthwise/depthwise.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/depthwise/depthwise.inc"

}  // namespace

const DepthwiseKernels& depthwise_portable() { return kDepthwise; }

}  // namespace headgate
