#include <cstdint>

#include "kernels/winograd/layout.h"
#include "kernels/winograd/winograd.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/winograd/winograd.inc"

}  // namespace

const WinogradKernels& winograd_portable() { return kWinograd; }

}  // namespace headgate
