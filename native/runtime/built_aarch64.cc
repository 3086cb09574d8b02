#include "runtime/built.h"

namespace headgate {

bool built(Isa isa) { return isa == Isa::neon || isa == Isa::portable; }

}  // namespace headgate
