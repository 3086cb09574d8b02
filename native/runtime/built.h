// What the build contains; answered by built_x86.cc, built_aarch64.cc or built_none.cc, whichever the build
// compiles. Of the instruction sets that it lacks, no_avx.cc and no_neon.cc stand in for the kernels.
#pragma once

#include "headgate/isa.h"

namespace headgate {

bool built(Isa isa);

}  // namespace headgate
