#include <immintrin.h>
#include <cstdint>

#include "kernels/conditional/conditional.h"
#include "kernels/conditional/group_packing.h"
#include "kernels/conditional/layout.h"

#define HEADGATE_WIDTH 16

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/conditional/masks.inc"

namespace activation {
#include "kernels/conditional/reduce.inc"
#include "kernels/conditional/tile.inc"
#include "kernels/conditional/kernels.inc"
}  // namespace activation

namespace group {
#include "kernels/conditional/group.inc"
}  // namespace group

}  // namespace

const ConditionalKernels& conditional_activation_avx512() { return activation::kActivation; }
const ConditionalKernels& conditional_group_avx512() { return group::kGroup; }

}  // namespace headgate
