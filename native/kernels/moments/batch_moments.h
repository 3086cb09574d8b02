// Batch statistics and what a batch norm makes of them.
#pragma once

#include <cstdint>
#include <vector>

#include "headgate/tensor.h"

namespace headgate {

struct BatchMoments {
  std::vector<double> mean;
  std::vector<double> m2;  // Σ (x − mean)²
};

// Over `rows` rows of `channels` values, `stride` elements apart.
BatchMoments batch_moments(Dtype dtype, const void* x, std::int64_t stride, std::int64_t rows, int channels, int threads);

// Writes the norm's mean and rstd and updates its running statistics. `mean` and `m2`: the batch's over `rows` rows,
// read in training only.
void settle(const Norm& norm, int channels, std::int64_t rows, const double* mean, const double* m2);

// torch.lerp's arithmetic: exact at both ends.
float lerp(float start, float end, float weight);

}  // namespace headgate
