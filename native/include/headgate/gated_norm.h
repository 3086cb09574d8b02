// Both sums' batch norms, decision, selection, residual and ReLU in one operator; see headgate.ops.gated_norm.
#pragma once

#include <cstdint>

#include "headgate/tensor.h"

namespace headgate {

// Tensors are channels last: element (n, c, h, w) lies at ((n · H + h) · W + w) · stride + c, strides in elements.
struct GatedNormShape {
  Dtype dtype;
  std::int64_t images;
  std::int64_t pixels;  // per image
  int channels;
  int groups;   // decisions per pixel: `channels` for activation granularity
  bool grouped;  // the decision is the group's: score_var and scale are given
  float slope;
  bool relu;
};

struct GatedNormForward {
  GatedNormShape shape;
  const void* final_sum;
  const void* partial_sum;
  const void* residual;  // or null
  void* output;
  std::int64_t final_stride, partial_stride, residual_stride, output_stride;
  Norm final_norm, partial_norm;
  const float* threshold;  // (groups)
  float* score_var;        // (groups) where grouped; updated if partial_norm.training
  float* scale;            // (groups) written where grouped: what scaled the score
  float* counts;           // (images, groups) written: open decisions
};

struct GatedNormBackward {
  GatedNormShape shape;
  const void* final_sum;
  const void* partial_sum;
  const void* output;       // needed with ReLU and residual, else null
  const void* grad_output;
  const float* grad_counts;  // (images, groups) or null
  void* grad_residual;       // written where `output` is given: grad_output where the ReLU was open
  void* grad_final;          // null where neither sum's gradient is wanted
  void* grad_partial;
  std::int64_t final_stride, partial_stride, output_stride, grad_output_stride, grad_residual_stride;
  std::int64_t grad_final_stride, grad_partial_stride;
  NormGrad final_norm, partial_norm;
  const float* threshold;
  const float* scale;      // (groups) where grouped
  float* grad_threshold;   // (groups)
};

// Results depend on `threads` (the order of summation) but not on how they are scheduled.
void gated_norm_forward(const GatedNormForward& op, int threads);
void gated_norm_backward(const GatedNormBackward& op, int threads);

}  // namespace headgate
