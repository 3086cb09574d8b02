// The instruction sets that a native test can run. Its output names every one, with what keeps it from those that it
// cannot; tests/test_native_executables.py compares that with the CPU.
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
        std::printf("instruction set %s: not tested, as the build lacks it\n", name(isa));
      } else if (std::count(in_cpu.begin(), in_cpu.end(), isa) == 0) {
        std::printf("instruction set %s: not tested, as the CPU lacks it\n", name(isa));
      } else {
        std::printf("instruction set %s: tested\n", name(isa));
        both.push_back(isa);
      }
    }
    return both;
  }();
  return present;
}

}  // namespace headgate
