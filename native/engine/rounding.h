// What a convolution of a plan may say of its numbers: 8-bit integers, bfloat16, or nothing, for float32.
#pragma once

#include "engine/attributes.h"
#include "engine/plan.h"

namespace headgate {

// Sets `int8` or `bfloat16` of a convolution of which all else has been read. Throws PlanError.
void read_rounding(Attributes& attributes, Op& op);

}  // namespace headgate
