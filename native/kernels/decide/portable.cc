#include <cstdint>

#include "kernels/decide/decide.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/decide/decide.inc"

}  // namespace

const DecideKernels& decide_portable() { return kDecide; }

}  // namespace headgate
