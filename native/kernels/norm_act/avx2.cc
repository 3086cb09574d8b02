#include <immintrin.h>
#include <cstdint>

#include "kernels/norm_act/norm_act.h"

#define HEADGATE_WIDTH 8

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/norm_act/norm_act.inc"

}  // namespace

const NormActKernels& norm_act_avx2() { return kNormAct; }

}  // namespace headgate
