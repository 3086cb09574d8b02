#include "runtime/built.h"

namespace headgate {

bool built(Isa) { return true; }

}  // namespace headgate
