#include "engine/kernel_set.h"

#include "runtime/amx.h"

namespace headgate {

Avx512Extras extras_in_cpu() {
#if defined(__x86_64__)
  return {.vnni = __builtin_cpu_supports("avx512vnni") != 0,
          .bf16 = __builtin_cpu_supports("avx512bf16") != 0,
          .amx = cpu_has_amx()};
#else
  return {};
#endif
}

const NarrowKernels& int8_kernels(Isa isa, const Avx512Extras& cpu) {
  if (isa == Isa::avx512 && cpu.vnni) return int8_avx512();
  if (isa == Isa::avx512 || isa == Isa::avx2) return int8_avx2();
  return int8_portable();
}

const NarrowKernels& bfloat16_kernels(Isa isa, const Avx512Extras& cpu) {
  if (isa == Isa::avx512 && cpu.amx) return bfloat16_amx();
  if (isa == Isa::avx512 && cpu.bf16) return bfloat16_avx512();
  if (isa == Isa::avx512 || isa == Isa::avx2) return bfloat16_avx2();
  return bfloat16_portable();
}

KernelSet kernel_set(Isa isa) {
  const Avx512Extras cpu = isa == Isa::avx512 ? extras_in_cpu() : Avx512Extras{};
  const NarrowKernels &int8 = int8_kernels(isa, cpu), &bfloat16 = bfloat16_kernels(isa, cpu);
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
