// The kernels of one instruction set.
#pragma once

#include "headgate/isa.h"
#include "kernels/conditional/conditional.h"
#include "kernels/conv/conv.h"
#include "kernels/decide/decide.h"
#include "kernels/depthwise/depthwise.h"
#include "kernels/maps/maps.h"
#include "kernels/narrow/narrow.h"
#include "kernels/winograd/winograd.h"

namespace headgate {

struct KernelSet {
  const ConvKernels& conv;
  const WinogradKernels& winograd;
  const DepthwiseKernels& depthwise;
  const ConditionalKernels &conditional_activation, &conditional_group;
  const DecideKernels& decide;
  const MapsKernels& maps;
  const NarrowKernels &int8, &bfloat16;
};

KernelSet kernel_set(Isa isa);

// `vnni`: whether the CPU multiplies bytes. AVX-512 without it uses AVX2's kernels, whose results are the same.
const NarrowKernels& int8_kernels(Isa isa, bool vnni);
bool cpu_has_vnni();

// `amx`: whether the CPU multiplies tiles. Results differ by rounding.
const NarrowKernels& bfloat16_kernels(Isa isa, bool amx);

}  // namespace headgate
