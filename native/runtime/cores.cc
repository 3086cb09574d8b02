#include "runtime/cores.h"

#include <sched.h>

#include <algorithm>
#include <cmath>
#include <fstream>

#include "headgate/parallel.h"

namespace headgate {
namespace {

// Microseconds of CPU time in each period of so many; both may be in one file.
std::optional<double> share(std::istream& quota, std::istream& period) {
  double allowed = 0, every = 0;
  if (!(quota >> allowed && period >> every)) return std::nullopt;  // "max" is no number
  if (!(allowed > 0 && every > 0)) return std::nullopt;             // −1: no quota
  return allowed / every;
}

}  // namespace

std::optional<int> quota_in_cores(const std::string& folder) {
  std::ifstream both(folder + "/cpu.max");  // version 2
  std::ifstream quota(folder + "/cpu/cpu.cfs_quota_us"), period(folder + "/cpu/cpu.cfs_period_us");
  std::optional<double> cores = share(both, both);
  if (!cores) cores = share(quota, period);
  if (!cores) return std::nullopt;
  return static_cast<int>(std::ceil(std::min(*cores, 1e6)));
}

int usable_cores() {
  cpu_set_t cores;
  const int allowed = ::sched_getaffinity(0, sizeof cores, &cores) == 0 ? std::max(1, CPU_COUNT(&cores)) : 1;
  return std::min(allowed, quota_in_cores("/sys/fs/cgroup").value_or(allowed));
}

}  // namespace headgate
