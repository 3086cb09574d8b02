#include "engine/kernel_set.h"

#include "runtime/amx.h"

namespace headgate {

const NarrowKernels& int8_kernels(Isa isa, bool vnni) {
  if (isa == Isa::avx512 && vnni) return int8_avx512();
  if (isa == Isa::avx512 || isa == Isa::avx2) return int8_avx2();
  return int8_portable();
}

bool cpu_has_vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

const NarrowKernels& bfloat16_kernels(Isa isa, bool amx) {
  if (isa == Isa::avx512) return amx ? bfloat16_amx() : bfloat16_avx512();
  return isa == Isa::avx2 ? bfloat16_avx2() : bfloat16_portable();
}

KernelSet kernel_set(Isa isa) {
  const NarrowKernels& int8 = int8_kernels(isa, cpu_has_vnni());
  const NarrowKernels& bfloat16 = bfloat16_kernels(isa, isa == Isa::avx512 && cpu_has_amx());
  switch (isa) {
    case Isa::avx512:
      return {conv_avx512(), winograd_avx512(), depthwise_avx512(), conditional_activation_avx512(),
              conditional_group_avx512(), decide_avx512(), maps_avx512(), int8, bfloat16};
    case Isa::avx2:
      return {conv_avx2(), winograd_avx2(), depthwise_avx2(), conditional_activation_avx2(),
              conditional_group_avx2(), decide_avx2(), maps_avx2(), int8, bfloat16};
    case Isa::neon:
      return {conv_neon(), winograd_neon(), depthwise_neon(), conditional_activation_neon(),
              conditional_group_neon(), decide_neon(), maps_neon(), int8, bfloat16};
    case Isa::portable: break;
  }
  return {conv_portable(), winograd_portable(), depthwise_portable(), conditional_activation_portable(),
          conditional_group_portable(), decide_portable(), maps_portable(), int8, bfloat16};
}

}  // namespace headgate
