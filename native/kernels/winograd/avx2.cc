#include <immintrin.h>
#include <cstdint>

#include "kernels/winograd/layout.h"
#include "kernels/winograd/winograd.h"

#define HEADGATE_WIDTH 8

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/winograd/winograd.inc"

}  // namespace

const WinogradKernels& winograd_avx2() { return kWinograd; }

}  // namespace headgate
