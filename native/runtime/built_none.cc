// For processors with no kernels of their own.
#include "runtime/built.h"

namespace headgate {

bool built(Isa isa) { return isa == Isa::portable; }

}  // namespace headgate
