#include <arm_neon.h>
#include <cstdint>

#include "kernels/conv/conv.h"
#include "kernels/conv/packing.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/conv/conv.inc"

}  // namespace

const ConvKernels& conv_neon() { return kConv; }

}  // namespace headgate
