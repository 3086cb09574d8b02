// How tensors reach the operators: plain pointers to channels-last memory.
#pragma once

#include <cstdint>

namespace headgate {

enum class Dtype { float32, bfloat16 };

// One batch normalisation over c channels. Where `training`, mean and rstd are written and the running statistics
// updated; else mean and rstd are written from the running statistics.
struct Norm {
  const float* weight;
  const float* bias;
  float* running_mean;
  float* running_var;
  bool training;
  float momentum;
  float eps;
  float* mean;  // of what normalises; kept for the backward pass
  float* rstd;
};

// The same norm in the backward pass.
struct NormGrad {
  const float* weight;
  const float* bias;
  const float* mean;
  const float* rstd;
  bool training;
  float* grad_weight;
  float* grad_bias;
};

}  // namespace headgate
