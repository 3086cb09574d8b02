#include <immintrin.h>
#include <cstdint>

#include "kernels/quantise/quantise.h"

#define HEADGATE_WIDTH 16

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/quantise/quantise.inc"

}  // namespace

const QuantiseKernels& quantise_avx512() { return kQuantise; }

}  // namespace headgate
