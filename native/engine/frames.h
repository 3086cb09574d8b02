// The frames around values' maps, which stand for the padding of convolutions.
#pragma once

#include <cstdint>

#include "kernels/map.h"
#include "kernels/narrow/narrow.h"

namespace headgate {

// Writes zeros around an image's map.
void clear_frame(const Map& map, std::int64_t image);

// Writes what stands for 0 around all images' maps.
void fill_frames(const NarrowMap& map, int element_bytes, int zero_byte);

}  // namespace headgate
