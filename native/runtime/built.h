// What the build contains; answered by built_x86.cc or built_none.cc, whichever the build compiles.
#pragma once

#include "headgate/isa.h"

namespace headgate {

bool built(Isa isa);

}  // namespace headgate
