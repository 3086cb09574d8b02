#include <arm_neon.h>
#include <cstdint>

#include "kernels/winograd/layout.h"
#include "kernels/winograd/winograd.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/winograd/winograd.inc"

}  // namespace

const WinogradKernels& winograd_neon() { return kWinograd; }

}  // namespace headgate
