#include <cstdint>

#include "kernels/maps/maps.h"

#define HEADGATE_WIDTH 4

namespace headgate {
namespace {

#include "kernels/simd.inc"
#include "kernels/lanes.inc"
#include "kernels/pixels.inc"
#include "kernels/maps/maps.inc"

}  // namespace

const MapsKernels& maps_portable() { return kMaps; }

}  // namespace headgate
