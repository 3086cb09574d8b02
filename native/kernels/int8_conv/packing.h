// How the integer kernels see their weights and the channels of their inputs. Packing needs no vectors, so that one
// plain source serves every instruction set.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <vector>

#include "kernels/int8_conv/int8_conv.h"

namespace headgate {

// Per output channel: weight ≈ quantised · scale, quantised in [−127, 127], halves rounded to even. Depends on the
// weights alone, not on the instruction set.
struct Int8Tensor {
  std::vector<std::int8_t> values;
  std::vector<double> scale;
};
Int8Tensor quantise_weights(const float* weight, int outputs, std::int64_t per_output);

// The order of a pixel's channels in a quantised map: block after block of the base path, where no channel is in two of
// them, so that a block's inputs are adjacent, and then the others if `rest`; the map's own order otherwise.
struct Int8Order {
  std::vector<std::int32_t> channel_at;   // of every element; −1 for padding
  std::vector<std::int32_t> position_of;  // of every channel; −1 for one that is not read
  bool identity;

  std::int64_t elements() const { return static_cast<std::int64_t>(channel_at.size()); }
};
Int8Order int8_order(const ConvShape& shape, bool rest);

class Int8Weights {
 public:
  Int8View view() const {
    return {blocks_.data(), static_cast<int>(blocks_.size()), offsets_.data(), weights_.get(), start_.data()};
  }

 private:
  friend class Int8Packer;
  struct Delete {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::vector<Int8Block> blocks_;
  std::vector<std::int64_t> offsets_;
  std::unique_ptr<std::byte, Delete> weights_;
  std::vector<std::int32_t> start_;
};

// Of the whole convolution or the base path: `weight` is [out, inputs_per_block, kh, kw]. `zero` is the input's.
Int8Weights pack_int8(const ConvShape& shape, const std::int8_t* weight, const Int8Order& order, int zero,
                      Int8Format format);

// Of the conditional path: `weight` is [out, in, kh, kw], of which the base path's are left out; a block for each of so
// many equal blocks of outputs.
Int8Weights pack_int8_rest(const ConvShape& shape, const std::int8_t* weight, int decisions, const Int8Order& order,
                           int zero, Int8Format format);

}  // namespace headgate
