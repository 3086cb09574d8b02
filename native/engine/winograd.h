// Which convolutions are computed by Winograd's algorithm.
#pragma once

#include <optional>

#include "engine/plan.h"
#include "kernels/winograd/winograd.h"

namespace headgate {

// None where the algorithm does not apply or does not pay. The choice follows from the operator alone: an image's result
// must not depend on its batch, on threads or on measurements.
std::optional<WinogradShape> winograd_shape(const Plan& plan, const Op& op);

}  // namespace headgate
