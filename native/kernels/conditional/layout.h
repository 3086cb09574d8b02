// How the conditional path of activation granularity cuts its work: blocks of input channels, tiles of output pixels, and
// the packed weights. The same for every instruction set.
#pragma once

#include <cstdint>

#include "kernels/conditional/conditional.h"

namespace headgate {

// A plane is kLanes input channels. Sums run over the planes of a block, tap by tap; blocks are added up one after
// another. Depends on the convolution alone, as the order of every sum must.
struct PlaneBlocks {
  int taps;
  int planes;  // of the input
  int size;    // planes per block; the last block may have fewer
  int count;   // blocks
};

PlaneBlocks plane_blocks(const ConvShape& shape);

constexpr int kTilePixels = 64;  // a bit per pixel in one word
constexpr int kMaxTiles = 16;    // held at a time

// A tile is rows × columns output pixels of one image, or all pixels of several images. Its patch holds the inputs that
// it reads, a plane after the other; a patch keeps only the rows and columns that are read where a kernel has extent 1.
struct Tiling {
  int rows, columns, images;         // of a tile, at most
  int patch_rows, patch_columns;     // of one image
  int step[2];                       // input pixels from one patch pixel to the next
  int stride[2];                     // patch pixels from one output pixel to the next
  bool direct;                       // there is one block: the input itself serves as the patch
  int held;                          // tiles at a time
  std::int64_t patch_floats;         // of one tile and block; 0 if direct
  // Offsets into the scratch memory, in bytes.
  std::int64_t taps, words, sums, bytes;
};

Tiling tiling(const ConvShape& shape, const Map& output);

// Packed weights begin with one of these for every block and output channel. In the same order follow the planes that are
// used: [plane][tap][kLanes].
struct [[gnu::may_alias]] PackedPlanes {
  std::uint32_t used;   // bit p: plane p of the block has inputs outside the channel's base block
  std::uint32_t first;  // where its planes begin: lines of kLanes floats behind the header
};

std::int64_t packed_header(const ConvShape& shape);  // floats
std::int64_t packed_size(const ConvShape& shape);
void pack(const ConvShape& shape, const float* weight, float* packed);

}  // namespace headgate
