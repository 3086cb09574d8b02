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

// What a CPU may have beside AVX-512: it multiplies bytes, bfloat16, and tiles of bfloat16.
struct Avx512Extras {
  bool vnni = false, bf16 = false, amx = false;
};
Avx512Extras extras_in_cpu();

// Without these, AVX-512 uses AVX2's kernels. Results are the same in 8 bits, and differ by rounding in bfloat16.
const NarrowKernels& int8_kernels(Isa isa, const Avx512Extras& cpu);
const NarrowKernels& bfloat16_kernels(Isa isa, const Avx512Extras& cpu);

}  // namespace headgate
