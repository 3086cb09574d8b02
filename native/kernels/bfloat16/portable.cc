#include <cstdint>

#include "kernels/narrow/narrow.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/bfloat16/numbers.inc"
#include "kernels/narrow/kernels.inc"

}  // namespace

const NarrowKernels& bfloat16_portable() { return kNarrow; }

}  // namespace headgate
