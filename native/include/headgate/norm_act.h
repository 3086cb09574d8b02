// Batch norm, residual and ReLU in one operator; see headgate.ops.norm_act.
#pragma once

#include <cstdint>

#include "headgate/tensor.h"

namespace headgate {

// Tensors are channels last, strides between pixels in elements.
struct NormActForward {
  Dtype dtype;
  std::int64_t rows;  // images · pixels
  int channels;
  bool relu;
  const void* input;
  const void* residual;  // or null
  void* output;
  std::int64_t input_stride, residual_stride, output_stride;
  Norm norm;
};

struct NormActBackward {
  Dtype dtype;
  std::int64_t rows;
  int channels;
  bool relu;
  const void* input;
  const void* output;  // needed with ReLU and residual, else null
  const void* grad_output;
  void* grad_residual;  // written where `output` is given
  void* grad_input;     // or null: not wanted
  std::int64_t input_stride, output_stride, grad_output_stride, grad_residual_stride, grad_input_stride;
  NormGrad norm;
};

void norm_act_forward(const NormActForward& op, int threads);
void norm_act_backward(const NormActBackward& op, int threads);

}  // namespace headgate
