// The kernels of one instruction set.
#pragma once

#include "headgate/isa.h"
#include "kernels/conditional/conditional.h"
#include "kernels/conv/conv.h"
#include "kernels/decide/decide.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/int8_conditional/int8_conditional.h"
#include "kernels/int8_conv/int8_conv.h"
#include "kernels/maps/maps.h"
#include "kernels/quantise/quantise.h"
#include "kernels/winograd/winograd.h"

namespace headgate {

struct Int8Kernels {
  const QuantiseKernels& quantise;
  const Int8ConvKernels& conv;
  const Int8ConditionalKernels& conditional;
};

struct KernelSet {
  const ConvKernels& conv;
  const WinogradKernels& winograd;
  const DepthwiseKernels& depthwise;
  const ConditionalKernels &conditional_activation, &conditional_group;
  const DecideKernels& decide;
  const MapsKernels& maps;
  Int8Kernels int8;
};

KernelSet kernel_set(Isa isa);

// `vnni`: whether the CPU multiplies bytes. AVX-512 without it uses AVX2's kernels, whose results are the same.
Int8Kernels int8_kernels(Isa isa, bool vnni);
bool cpu_has_vnni();

}  // namespace headgate
