#include <cstdint>

#include "kernels/int8_conv/int8_conv.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/int8_conv/conv.inc"

}  // namespace

const Int8ConvKernels& int8_conv_portable() { return kInt8Conv; }

}  // namespace headgate
