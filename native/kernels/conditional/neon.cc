#include <arm_neon.h>
#include <cstdint>

#include "kernels/conditional/conditional.h"
#include "kernels/conditional/layout.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/conditional/reduce.inc"
#include "kernels/conditional/tile.inc"
#include "kernels/conditional/kernels.inc"

}  // namespace

const ConditionalKernels& conditional_activation_neon() { return kActivation; }
const ConditionalKernels& conditional_group_neon() { return kGroup; }

}  // namespace headgate
