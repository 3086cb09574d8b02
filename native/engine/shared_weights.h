// Packed weights of a plan's operators. Operators that read the same tensor in the same way share them.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "engine/aligned.h"
#include "engine/safetensors.h"
#include "kernels/conditional/conditional.h"
#include "kernels/conv/conv.h"
#include "kernels/winograd/winograd.h"

namespace headgate {

using PackedWeights = std::shared_ptr<const Aligned<float>>;

// May be used from several threads at once. Tensors are told apart by their addresses. Throws std::bad_alloc; then
// nothing has changed.
class SharedWeights {
 public:
  // Tensors lie in `file`, which must outlive this. What is read of it does not stay in memory.
  explicit SharedWeights(const MappedFile& file) : file_(file) {}

  // `weight` is torch's [out, inputs_per_block, kh, kw].
  PackedWeights conv(const ConvKernels& kernels, const ConvShape& shape, const float* weight);

  // The same by Winograd's algorithm.
  PackedWeights winograd(const WinogradKernels& kernels, const WinogradShape& shape, const float* weight);

  // A gated convolution's base path, direct or by Winograd's algorithm, and its conditional path; `weight` is torch's full
  // [out, in, kh, kw].
  PackedWeights base(const ConvKernels& kernels, const ConvShape& shape, const float* weight);
  PackedWeights winograd_base(const WinogradKernels& kernels, const WinogradShape& shape, const float* weight);
  PackedWeights conditional(const ConditionalKernels& kernels, const ConvShape& shape, int decisions,
                            const float* weight);

 private:
  using Key = std::string;
  struct Entry {
    std::mutex mutex;  // held while packing, so that others of the same key wait for it
    std::weak_ptr<const Aligned<float>> weights;
  };

  PackedWeights find_or_pack(const Key& key, std::int64_t size, const std::function<void(float*)>& pack);

  const MappedFile& file_;
  std::mutex mutex_;  // of the next, but not of its entries, which stay where they are
  std::map<Key, Entry> entries_;
};

}  // namespace headgate
