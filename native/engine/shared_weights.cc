#include "engine/shared_weights.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>

namespace headgate {
namespace {

// So many floats are packed before the file's memory is given back.
constexpr std::int64_t kAtATime = std::int64_t{1} << 20;

enum Kind : int { kConv, kWinograd, kBase, kWinogradBase, kConditional };

// The bytes of all that packed weights depend on, and a little more; `packing` is the function, `parts` decisions or tiles.
std::string key_of(Kind kind, const void* packing, const ConvShape& s, int parts, const float* weight) {
  std::string key;
  const auto add = [&](const auto* values, std::size_t count) {
    key.append(reinterpret_cast<const char*>(values), count * sizeof *values);
  };
  add(&kind, 1), add(&packing, 1), add(&weight, 1), add(&parts, 1);
  for (int number : {s.in_channels, s.out_channels, s.blocks, s.inputs_per_block}) add(&number, 1);
  add(s.kernel, 2), add(s.stride, 2), add(s.dilation, 2);
  add(s.inputs.data(), s.inputs.size());
  return key;
}

// The weights [out, inputs_per_block, kh, kw] of the listed inputs, picked from all. Not on the heap, which would keep
// its memory.
Aligned<float> listed(const ConvShape& s, const float* weight) {
  const std::int64_t taps = std::int64_t{s.kernel[0]} * s.kernel[1];
  Aligned<float> picked(s.out_channels * s.inputs_per_block * taps);
  float* to = picked.data();
  for (int c = 0; c < s.out_channels; ++c) {
    const std::int32_t* inputs = s.inputs.data() + std::int64_t{c} * s.blocks / s.out_channels * s.inputs_per_block;
    for (int i = 0; i < s.inputs_per_block; ++i, to += taps) {
      std::copy_n(weight + (std::int64_t{c} * s.in_channels + inputs[i]) * taps, taps, to);
    }
  }
  return picked;
}

}  // namespace

PackedWeights SharedWeights::conv(const ConvKernels& kernels, const ConvShape& shape, const float* weight) {
  const Key key = key_of(kConv, reinterpret_cast<const void*>(kernels.pack), shape, 0, weight);
  const std::int64_t per_output = std::int64_t{shape.inputs_per_block} * shape.kernel[0] * shape.kernel[1];
  const std::int64_t step = std::max<std::int64_t>(1, kAtATime / per_output / kLanes) * kLanes;
  return find_or_pack(key, kernels.packed_size(shape), [&](float* packed) {
    for (std::int64_t first = 0; first < shape.out_channels; first += step) {
      const std::int64_t last = std::min<std::int64_t>(first + step, shape.out_channels);
      kernels.pack_outputs(shape, weight, packed, static_cast<int>(first), static_cast<int>(last));
      file_.let_go();
    }
  });
}

PackedWeights SharedWeights::base(const ConvKernels& kernels, const ConvShape& shape, const float* weight) {
  const Key key = key_of(kBase, reinterpret_cast<const void*>(kernels.pack), shape, 0, weight);
  return find_or_pack(key, kernels.packed_size(shape),
                      [&](float* packed) { kernels.pack(shape, listed(shape, weight).data(), packed); });
}

PackedWeights SharedWeights::winograd(const WinogradKernels& kernels, const WinogradShape& shape, const float* weight) {
  const Key key = key_of(kWinograd, reinterpret_cast<const void*>(kernels.pack), shape.conv, shape.tile, weight);
  return find_or_pack(key, kernels.packed_size(shape), [&](float* packed) { kernels.pack(shape, weight, packed); });
}

PackedWeights SharedWeights::winograd_base(const WinogradKernels& kernels, const WinogradShape& shape,
                                           const float* weight) {
  const Key key = key_of(kWinogradBase, reinterpret_cast<const void*>(kernels.pack), shape.conv, shape.tile, weight);
  return find_or_pack(key, kernels.packed_size(shape),
                      [&](float* packed) { kernels.pack(shape, listed(shape.conv, weight).data(), packed); });
}

PackedWeights SharedWeights::conditional(const ConditionalKernels& kernels, const ConvShape& shape, int decisions,
                                         const float* weight) {
  const Key key = key_of(kConditional, reinterpret_cast<const void*>(kernels.pack), shape, decisions, weight);
  return find_or_pack(key, kernels.packed_size(shape, decisions),
                      [&](float* packed) { kernels.pack(shape, decisions, weight, packed); });
}

PackedWeights SharedWeights::find_or_pack(const Key& key, std::int64_t size, const std::function<void(float*)>& pack) {
  Entry* entry;
  {
    std::lock_guard lock(mutex_);
    entry = &entries_[key];
  }
  std::lock_guard lock(entry->mutex);
  if (PackedWeights held = entry->weights.lock()) return held;
  auto made = std::make_shared<Aligned<float>>(size);
  pack(made->data());
  file_.let_go();
  entry->weights = made;
  return made;
}

}  // namespace headgate
