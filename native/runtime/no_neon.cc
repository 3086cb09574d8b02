// For other processors than AArch64: names what the build lacks, so that callers need no #ifdef.
#include "kernels/conditional/conditional.h"
#include "kernels/conv/conv.h"
#include "kernels/decide/decide.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/gated_norm/gated_norm.h"
#include "kernels/maps/maps.h"
#include "kernels/moments/moments.h"
#include "kernels/norm_act/norm_act.h"
#include "kernels/winograd/winograd.h"

namespace headgate {

const MomentsKernels& moments_neon() { return moments_portable(); }
const GatedNormKernels& gated_norm_neon() { return gated_norm_portable(); }
const NormActKernels& norm_act_neon() { return norm_act_portable(); }
const ConvKernels& conv_neon() { return conv_portable(); }
const WinogradKernels& winograd_neon() { return winograd_portable(); }
const DepthwiseKernels& depthwise_neon() { return depthwise_portable(); }
const ConditionalKernels& conditional_activation_neon() { return conditional_activation_portable(); }
const ConditionalKernels& conditional_group_neon() { return conditional_group_portable(); }
const DecideKernels& decide_neon() { return decide_portable(); }
const MapsKernels& maps_neon() { return maps_portable(); }

}  // namespace headgate
