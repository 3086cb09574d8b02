// The instruction sets that a native test can run; those that it cannot are named in its output.
#pragma once

#include <algorithm>
#include <cstdio>
#include <vector>

#include "headgate/isa.h"

namespace headgate {

inline const std::vector<Isa>& isas() {
  static const std::vector<Isa> present = [] {
    const std::vector<Isa> in_build = isas_in_build(), in_cpu = isas_in_cpu();
    std::vector<Isa> both;
    for (Isa isa : kIsas) {
      if (std::count(in_build.begin(), in_build.end(), isa) == 0) {
        std::printf("not tested, as the build lacks it: %s\n", name(isa));
      } else if (std::count(in_cpu.begin(), in_cpu.end(), isa) == 0) {
        std::printf("not tested, as the CPU lacks it: %s\n", name(isa));
      } else {
        both.push_back(isa);
      }
    }
    return both;
  }();
  return present;
}

}  // namespace headgate
