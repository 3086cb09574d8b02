// The kernels of one instruction set.
#pragma once

#include "headgate/isa.h"
#include "kernels/conditional/conditional.h"
#include "kernels/conv/conv.h"
#include "kernels/decide/decide.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/maps/maps.h"

namespace headgate {

struct KernelSet {
  const ConvKernels& conv;
  const DepthwiseKernels& depthwise;
  const ConditionalKernels &conditional_activation, &conditional_group;
  const DecideKernels& decide;
  const MapsKernels& maps;
};

KernelSet kernel_set(Isa isa);

}  // namespace headgate
