#include "engine/memory.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>

#include "engine/winograd.h"
#include "kernels/map.h"
#include "kernels/winograd/layout.h"

namespace headgate {
namespace {

// A container's limit, of cgroup version 2 and 1; infinite where there is none.
double container_limit() {
  double limit = std::numeric_limits<double>::infinity();
  for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
    double bytes = 0;
    if (std::ifstream(path) >> bytes) limit = std::min(limit, bytes);  // "max" is no number
  }
  return limit;
}

double padded(int channels) { return padded_channels(channels); }

std::string megabytes(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.0f MB", std::ceil(bytes / 1e6));
  return text;
}

}  // namespace

double memory_limit() {
  double limit = static_cast<double>(::sysconf(_SC_PHYS_PAGES)) * static_cast<double>(::sysconf(_SC_PAGESIZE));
  struct rlimit own {};
  if (::getrlimit(RLIMIT_AS, &own) == 0 && own.rlim_cur != RLIM_INFINITY) {
    limit = std::min(limit, static_cast<double>(own.rlim_cur));
  }
  return std::min(limit, container_limit());
}

double packed_bytes(const Plan& plan) {
  double floats = 0;
  for (const Op& op : plan.ops) {
    if (op.kind != OpKind::conv && op.kind != OpKind::gated_conv) continue;
    const double outputs = padded(plan.values[op.output].channels);
    const double taps = double{1} * op.window.kernel[0] * op.window.kernel[1];
    const InputLists& base = op.gating ? op.gating->base : op.groups;
    if (const auto shape = winograd_shape(plan, op, base)) {
      floats += static_cast<double>(winograd_packed_size<kLanes>(*shape));
    } else {
      // As much again for the lists of what each lane of the weights reads.
      floats += 2 * outputs * base.per_block * taps;
    }
    // Bytes, in lines of 64 for each output and tap at worst.
    if (op.int8) floats += 16 * outputs * taps * std::ceil(base.per_block / 64.0);
    // Lanes of which a block with few outputs fills as many.
    if (op.bfloat16) floats += outputs * taps * base.per_block * std::max(1.0, 16 * base.blocks / outputs);
    // The conditional path's.
    if (op.gating) floats += outputs * padded(plan.values[op.inputs[0]].channels) * taps;
  }
  return floats * sizeof(float);
}

void refuse_beyond(double limit, double weights, double buffers) {
  if (weights + buffers <= limit) return;
  throw PlanError("needs about " + megabytes(weights + buffers) + " of memory for one image (weights " +
                  megabytes(weights) + ", maps and buffers " + megabytes(buffers) + "), and this process may use " +
                  megabytes(limit));
}

}  // namespace headgate
