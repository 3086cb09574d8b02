#include <immintrin.h>
#include <cstdint>

#include "kernels/conv/conv.h"
#include "kernels/conv/packing.h"

#define HEADGATE_WIDTH 16

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/conv/conv.inc"

}  // namespace

const ConvKernels& conv_avx512() { return kConv; }

}  // namespace headgate
