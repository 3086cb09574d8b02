// In which numbers values are held: in float32, and, beside it or instead, in the narrow numbers to which convolutions
// round them, so that each is rounded once, where it is made.
#pragma once

#include <optional>
#include <vector>

#include "engine/kernel_set.h"
#include "engine/plan.h"
#include "kernels/narrow/packing.h"

namespace headgate {

struct Held {
  struct Rounded {
    Rounding rounding;
    int element_bytes;
  };

  bool floats = true;
  std::optional<Rounded> rounded;
};

// Of every value. Rounded are those that a convolution makes and others read in the same narrow numbers, with one range
// and in the order of their channels. The others' readers round them.
std::vector<Held> held_values(const Plan& plan, const KernelSet& kernels);

const NarrowKernels& narrow_kernels(const Op& op, const KernelSet& kernels);

// A narrow convolution's geometry, which of a gated one is the base path's; and in which order it reads channels.
ConvShape narrow_shape(const Plan& plan, const Op& op);
NarrowOrder narrow_order(const Plan& plan, const Op& op, const KernelSet& kernels);

// What a narrow convolution makes of the numbers that it reads.
Rounding rounding_of(const Op& op);

}  // namespace headgate
