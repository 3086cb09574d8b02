#include <arm_neon.h>
#include <cstdint>

#include "kernels/decide/decide.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/decide/decide.inc"

}  // namespace

const DecideKernels& decide_neon() { return kDecide; }

}  // namespace headgate
