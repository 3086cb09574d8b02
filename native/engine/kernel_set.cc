#include "engine/kernel_set.h"

namespace headgate {

KernelSet kernel_set(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return {conv_avx512(), depthwise_avx512(), conditional_activation_avx512(), conditional_group_avx512(),
              decide_avx512(), maps_avx512()};
    case Isa::avx2:
      return {conv_avx2(), depthwise_avx2(), conditional_activation_avx2(), conditional_group_avx2(), decide_avx2(),
              maps_avx2()};
    case Isa::neon:
      return {conv_neon(), depthwise_neon(), conditional_activation_neon(), conditional_group_neon(), decide_neon(),
              maps_neon()};
    case Isa::portable: break;
  }
  return {conv_portable(), depthwise_portable(), conditional_activation_portable(), conditional_group_portable(),
          decide_portable(), maps_portable()};
}

}  // namespace headgate
