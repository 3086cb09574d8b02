// Which convolutions are computed by Winograd's algorithm.
#pragma once

#include <optional>

#include "engine/plan.h"
#include "kernels/winograd/winograd.h"

namespace headgate {

// Of a convolution whose outputs read these inputs: dense, in groups, or a gated one's base path. None where the algorithm
// does not apply or does not pay. The choice follows from the operator alone: an image's result
// must not depend on its batch, on threads or on measurements.
std::optional<WinogradShape> winograd_shape(const Plan& plan, const Op& op, const InputLists& lists);

}  // namespace headgate
