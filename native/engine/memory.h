// How much memory a plan asks for, and how much there is: what cannot fit is refused before it is tried.
#pragma once

#include <string>

#include "engine/layout.h"
#include "engine/plan.h"

namespace headgate {

// Bytes that this process may use: the machine's memory, the container's (cgroup) or the process's limit, whichever is
// the smallest. In double, so that sums of what a file claims cannot overflow.
double memory_limit();

// Bytes of packed weights, at most: as if no operators shared any.
double packed_bytes(const Plan& plan);

// Throws PlanError if `weights` and `buffers`, those of a run of one image, are more than `limit`; all in bytes.
void refuse_beyond(double limit, double weights, double buffers);

}  // namespace headgate
