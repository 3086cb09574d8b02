// How the narrow kernels see their weights and the channels of their inputs. Packing needs no vectors, so that one
// plain source serves every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels/narrow/narrow.h"

namespace headgate {

// Rounded weights, of the same layout: integers or the bits of bfloat16; per output channel, weight ≈ number · scale.
// They depend on the weights alone, not on the instruction set.
struct NarrowTensor {
  std::vector<std::int16_t> values;
  std::vector<double> scale;
};
// In [−127, 127], halves rounded to even.
NarrowTensor int8_weights(const float* weight, int outputs, std::int64_t per_output);
// To the nearest, halves to even; scales are 1.
NarrowTensor bfloat16_weights(const float* weight, int outputs, std::int64_t per_output);

// The order of a pixel's channels in a rounded map: block after block of the base path, so that a block's inputs are
// adjacent, and then the others if `rest`; the map's own order where a channel is in two blocks. Of bfloat16, all that
// shares a lane with a block's inputs is padding: 0 times an infinity is no 0.
struct NarrowOrder {
  std::vector<std::int32_t> channel_at;   // of every element; −1 for padding, which holds 0
  std::vector<std::int32_t> position_of;  // of every channel; −1 for one that is not read
  bool identity;                          // channel_at is the order of a map

  std::int64_t elements() const { return static_cast<std::int64_t>(channel_at.size()); }
};
NarrowOrder narrow_order(const ConvShape& shape, bool rest, NarrowFormat format);

class NarrowWeights {
 public:
  NarrowView view() const {
    return {blocks_.data(), static_cast<int>(blocks_.size()), offsets_.data(), weights_.get(), start_.data(),
            frame_is_zero_};
  }

 private:
  friend class NarrowPacker;
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::vector<NarrowBlock> blocks_;
  std::vector<std::int64_t> offsets_;
  std::unique_ptr<std::byte, Delete> weights_;
  std::vector<std::int32_t> start_;
  bool frame_is_zero_;
};

// Of the whole convolution or the base path: `weight` is [out, inputs_per_block, kh, kw]. `zero` is the input's, of
// integers.
NarrowWeights pack_narrow(const ConvShape& shape, const std::int16_t* weight, const NarrowOrder& order, int zero,
                          NarrowFormat format);

// Of the conditional path: `weight` is [out, in, kh, kw], of which the base path's are left out; a block for each of so
// many equal blocks of outputs.
NarrowWeights pack_narrow_rest(const ConvShape& shape, const std::int16_t* weight, int decisions,
                               const NarrowOrder& order, int zero, NarrowFormat format);

}  // namespace headgate
