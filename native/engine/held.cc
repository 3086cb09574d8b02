#include "engine/held.h"

#include "engine/step.h"

namespace headgate {
namespace {

// Bytes of a number that is held beside its float32: to write two more costs more than to round in time.
constexpr int kMostBeside = 1;

bool same(const Op& a, const Op& b) {
  const Rounding of_a = rounding_of(a), of_b = rounding_of(b);
  return a.bfloat16 == b.bfloat16 && of_a.inverse_scale == of_b.inverse_scale && of_a.zero == of_b.zero;
}

}  // namespace

const NarrowKernels& narrow_kernels(const Op& op, const KernelSet& kernels) {
  return op.int8 ? kernels.int8 : kernels.bfloat16;
}

ConvShape narrow_shape(const Plan& plan, const Op& op) {
  return conv_shape(plan, op, op.gating ? op.gating->base : op.groups);
}

NarrowOrder narrow_order(const Plan& plan, const Op& op, const KernelSet& kernels) {
  return narrow_order(narrow_shape(plan, op), op.gating.has_value(), narrow_kernels(op, kernels).format);
}

Rounding rounding_of(const Op& op) {
  return op.int8 ? Rounding{1.0f / op.int8->scale, op.int8->zero} : Rounding{1.0f, 0};
}

std::vector<Held> held_values(const Plan& plan, const KernelSet& kernels) {
  // Of every value: the narrow convolution that makes it, the latest of those that could read it rounded, whether
  // all of them agree, and whether others read it otherwise.
  struct Use {
    const Op *maker = nullptr, *reader = nullptr;
    bool agreed = true, floats = false;
  };
  std::vector<Use> uses(plan.values.size());
  for (const Op& op : plan.ops) {
    // An activation that is a pass of its own follows the rounding.
    if (op.narrow() && clamp_of(op.activation).complete) uses[op.output].maker = &op;
    for (std::size_t i = 0; i < op.inputs.size(); ++i) {
      Use& use = uses[op.inputs[i]];
      if (!op.narrow() || i > 0 || !narrow_order(plan, op, kernels).identity) {
        use.floats = true;
      } else {
        use.agreed = use.agreed && (use.reader == nullptr || same(*use.reader, op));
        use.reader = &op;
      }
    }
  }
  uses[plan.output].floats = true;
  std::vector<Held> held(plan.values.size());
  for (std::size_t value = 0; value < held.size(); ++value) {
    const Use& use = uses[value];
    if (use.maker == nullptr || use.reader == nullptr || !use.agreed) continue;
    if (use.maker->bfloat16 != use.reader->bfloat16) continue;
    const bool floats = use.floats || use.maker->gating;  // gates leave partial sums where they open
    const int bytes = narrow_kernels(*use.reader, kernels).format.element_bytes();
    if (floats && bytes > kMostBeside) continue;
    held[value] = {floats, {{rounding_of(*use.reader), bytes}}};
  }
  return held;
}

}  // namespace headgate
