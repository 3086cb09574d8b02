// One operator of a plan, ready to run: weights packed for this CPU, kernels chosen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <variant>
#include <vector>

#include "engine/aligned.h"
#include "engine/kernel_set.h"
#include "engine/layout.h"
#include "engine/plan.h"
#include "engine/shared_weights.h"
#include "kernels/narrow/packing.h"

namespace headgate {

constexpr int kMaxThreads = 256;

// What a run gives its steps. Buffers are as large as the steps asked for.
struct RunContext {
  const Layout& layout;
  std::int64_t images;
  int threads;
  float shift;  // of every threshold
  float* arena;
  std::uint16_t* masks;
  float* scores;
  std::byte* scratch;  // of `scratch_bytes` for each part, one after another

  Map map(int value) const { return layout.map(value, arena, images); }
  NarrowMap rounded(int value) const { return layout.rounded(value, arena, images); }
};

// Buffers that a step needs beside its values, for a batch of `images`.
struct Needs {
  std::int64_t mask_words = 0;
  std::int64_t scores = 0;         // floats
  std::int64_t scratch_bytes = 0;  // for each part, a multiple of 64
};

class Step {
 public:
  virtual ~Step() = default;

  virtual Needs needs(const Layout&, std::int64_t /*images*/) const { return {}; }

  // Writes the operator's output, padded channels included, but not its frame. Returns the open decisions, of gated
  // convolutions.
  virtual std::int64_t run(const RunContext& context) const = 0;
};

using PackedNarrow = std::shared_ptr<const NarrowWeights>;

// How a gated convolution completes its open outputs, and the weights that this needs.
struct Completion {
  Path path;
  std::variant<PackedWeights, PackedNarrow> weights;
};

// A gated convolution.
class GatedStep : public Step {
 public:
  // Packs the weights, unless somebody holds them. Throws std::bad_alloc.
  virtual Completion completion(Path path) const = 0;

  // From the next run on; weights that nobody else holds are let go of. Steps are made to use the sparse path.
  void use(Completion completion) noexcept {
    std::lock_guard lock(mutex_);
    std::swap(completion_, completion);  // what was used is let go of after the lock
  }

  Path path() const { return used().path; }

 protected:
  Completion used() const {
    std::lock_guard lock(mutex_);
    return completion_;
  }

 private:
  mutable std::mutex mutex_;  // of the next
  Completion completion_{};
};

// The step behind an operator. `weights` must outlive it.
std::unique_ptr<Step> make_step(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights);

std::unique_ptr<Step> make_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights);
std::unique_ptr<GatedStep> make_gated_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels,
                                                SharedWeights& weights);
std::unique_ptr<Step> make_narrow_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels);
std::unique_ptr<Step> make_map_step(const Plan& plan, const Op& op, const KernelSet& kernels);

// ---- What the steps share.

// Per-channel values padded with zeros, as kernels read them; all `fill` where there is no tensor.
Aligned<float> per_channel(const FloatTensor& tensor, int channels, float fill = 0.0f);

Function function_of(Activation activation);

// Bounds that do the activation's work as a clamp, where they can: none, relu, relu6.
struct Clamp {
  bool complete;  // nothing is left to do after it
  float low, high;
};
Clamp clamp_of(Activation activation);

// Calls body(part, begin, end) for at most `threads` nearly equal parts of [0, count), aligned to `unit`, in parallel.
using Body = std::function<void(int, std::int64_t, std::int64_t)>;
void split(std::int64_t count, std::int64_t unit, int threads, const Body& body);

// The convolution's geometry, with what each block of outputs reads; and where all read all inputs.
ConvShape conv_shape(const Plan& plan, const Op& op, const InputLists& lists);
InputLists every_input(const Plan& plan, const Op& op);
ConvShape dense_shape(const Plan& plan, const Op& op);

}  // namespace headgate
