// The instruction sets that a native test can run; those that it cannot are named in its output.
#pragma once

#include <algorithm>
#include <cstdio>
#include <vector>

#include "headgate/isa.h"

namespace headgate {

inline const std::vector<Isa>& isas() {
  static const std::vector<Isa> present = [] {
    const std::vector<Isa> in_cpu = isas_in_cpu();
    std::vector<Isa> both;
    for (Isa isa : isas_in_build()) {
      if (std::count(in_cpu.begin(), in_cpu.end(), isa) != 0) {
        both.push_back(isa);
      } else {
        std::printf("not tested, as the CPU lacks it: %s\n", name(isa));
      }
    }
    return both;
  }();
  return present;
}

}  // namespace headgate
