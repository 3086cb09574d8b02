#include <arm_neon.h>
#include <cstdint>

#include "kernels/maps/maps.h"

#define HEADGATE_WIDTH 4
#define HEADGATE_NEON 1

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/maps/maps.inc"

}  // namespace

const MapsKernels& maps_neon() { return kMaps; }

}  // namespace headgate
