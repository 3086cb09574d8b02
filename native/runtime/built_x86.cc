#include "runtime/built.h"

namespace headgate {

bool built(Isa isa) { return isa != Isa::neon; }

}  // namespace headgate
