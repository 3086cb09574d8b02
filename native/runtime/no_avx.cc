// For other processors than x86-64: names what the build lacks, so that callers need no #ifdef.
#include "kernels/conditional/conditional.h"
#include "kernels/conv/conv.h"
#include "kernels/decide/decide.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/gated_norm/gated_norm.h"
#include "kernels/maps/maps.h"
#include "kernels/moments/moments.h"
#include "kernels/narrow/narrow.h"
#include "kernels/norm_act/norm_act.h"
#include "kernels/winograd/winograd.h"
#include "runtime/amx.h"

namespace headgate {

const MomentsKernels& moments_avx2() { return moments_portable(); }
const MomentsKernels& moments_avx512() { return moments_portable(); }
const GatedNormKernels& gated_norm_avx2() { return gated_norm_portable(); }
const GatedNormKernels& gated_norm_avx512() { return gated_norm_portable(); }
const NormActKernels& norm_act_avx2() { return norm_act_portable(); }
const NormActKernels& norm_act_avx512() { return norm_act_portable(); }
const ConvKernels& conv_avx2() { return conv_portable(); }
const ConvKernels& conv_avx512() { return conv_portable(); }
const WinogradKernels& winograd_avx2() { return winograd_portable(); }
const WinogradKernels& winograd_avx512() { return winograd_portable(); }
const DepthwiseKernels& depthwise_avx2() { return depthwise_portable(); }
const DepthwiseKernels& depthwise_avx512() { return depthwise_portable(); }
const ConditionalKernels& conditional_activation_avx2() { return conditional_activation_portable(); }
const ConditionalKernels& conditional_activation_avx512() { return conditional_activation_portable(); }
const ConditionalKernels& conditional_group_avx2() { return conditional_group_portable(); }
const ConditionalKernels& conditional_group_avx512() { return conditional_group_portable(); }
const DecideKernels& decide_avx2() { return decide_portable(); }
const DecideKernels& decide_avx512() { return decide_portable(); }
const MapsKernels& maps_avx2() { return maps_portable(); }
const MapsKernels& maps_avx512() { return maps_portable(); }
const NarrowKernels& int8_avx2() { return int8_portable(); }
const NarrowKernels& int8_avx512() { return int8_portable(); }
const NarrowKernels& bfloat16_avx2() { return bfloat16_portable(); }
const NarrowKernels& bfloat16_avx512() { return bfloat16_portable(); }
const NarrowKernels& bfloat16_amx() { return bfloat16_portable(); }
bool cpu_has_amx() { return false; }

}  // namespace headgate
