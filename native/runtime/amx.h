// Whether this CPU and system let this process use AMX's tiles of bfloat16.
#pragma once

namespace headgate {

// Beside AVX-512. Asks the system for the tiles' state on first call. False, too, where they do not multiply as they
// should.
bool cpu_has_amx();

// Whether they do, on a CPU that has them.
bool amx_multiplies();

}  // namespace headgate
