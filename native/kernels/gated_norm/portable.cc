#include <cstdint>

#include "kernels/gated_norm/gated_norm.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/gated_norm/groups.inc"
#include "kernels/gated_norm/gated_norm.inc"

}  // namespace

const GatedNormKernels& gated_norm_portable() { return kGatedNorm; }

}  // namespace headgate
