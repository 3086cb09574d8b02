#include <cstdint>

#include "kernels/conditional/conditional.h"
#include "kernels/conditional/layout.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/conditional/reduce.inc"
#include "kernels/conditional/tile.inc"
#include "kernels/conditional/kernels.inc"

}  // namespace

const ConditionalKernels& conditional_activation_portable() { return kActivation; }
const ConditionalKernels& conditional_group_portable() { return kGroup; }

}  // namespace headgate
