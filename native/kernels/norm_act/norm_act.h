// What the norm_act kernels of every instruction set provide, and what they are told.
#pragma once

#include <cstdint>

namespace headgate {

// A range of rows (pixels); with cx = x − mean the norm's output is cx · gain + bias. Arrays of constants are padded
// with zeros to a multiple of 16 channels.
struct NormRows {
  const void* x;
  std::int64_t stride;
  std::int64_t begin, end;
  int channels;
  const float *mean, *gain, *bias;
};

struct NormForwardArgs {
  NormRows rows;
  const void* residual;
  void* output;
  std::int64_t residual_stride, output_stride;
};

struct NormBackwardArgs {
  NormRows rows;
  const void* grad_output;
  std::int64_t grad_output_stride;
  // Sums only:
  const void* output;
  void* grad_residual;
  std::int64_t output_stride, grad_residual_stride;
  double *sum_grad, *sum_grad_x;  // (padded channels), added to: Σ g and Σ g · cx
  // Write only: grad = g · gain − cx · slope − offset
  void* grad_input;
  std::int64_t grad_input_stride;
  const float *slope, *offset;
};

using NormForwardKernel = void (*)(const NormForwardArgs&);
using NormBackwardKernel = void (*)(const NormBackwardArgs&);

struct NormActKernels {
  NormForwardKernel forward[2][2][2];  // by Dtype, ReLU, residual
  NormBackwardKernel sums[2][3];       // by Dtype and ReLU's gradient: none, recomputed, from the saved output
  NormBackwardKernel write[2][2];      // none or recomputed: after sums, grad_residual serves as grad_output
};

const NormActKernels& norm_act_portable();
const NormActKernels& norm_act_neon();
const NormActKernels& norm_act_avx2();
const NormActKernels& norm_act_avx512();

}  // namespace headgate
