// Mean and squared deviations per channel in one pass over memory.
#pragma once

#include <cstdint>

namespace headgate {

struct MomentsArgs {
  const void* x;
  std::int64_t stride;  // between rows, in elements
  std::int64_t begin, end;  // rows, at least one
  int channels;
  double* mean;  // (channels)
  double* m2;    // (channels) Σ (x − mean)²
};

using MomentsKernel = void (*)(const MomentsArgs&);

struct MomentsKernels {
  MomentsKernel of[2];  // by Dtype
};

const MomentsKernels& moments_portable();
const MomentsKernels& moments_neon();
const MomentsKernels& moments_avx2();
const MomentsKernels& moments_avx512();

}  // namespace headgate
