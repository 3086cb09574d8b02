// For processors with no kernels of their own: names what the build lacks, so that callers need no #ifdef.
#include "kernels/gated_norm/gated_norm.h"
#include "kernels/moments/moments.h"
#include "kernels/norm_act/norm_act.h"
#include "runtime/built.h"

namespace headgate {

bool built(Isa isa) { return isa == Isa::portable; }

const MomentsKernels& moments_avx2() { return moments_portable(); }
const MomentsKernels& moments_avx512() { return moments_portable(); }
const GatedNormKernels& gated_norm_avx2() { return gated_norm_portable(); }
const GatedNormKernels& gated_norm_avx512() { return gated_norm_portable(); }
const NormActKernels& norm_act_avx2() { return norm_act_portable(); }
const NormActKernels& norm_act_avx512() { return norm_act_portable(); }

}  // namespace headgate
