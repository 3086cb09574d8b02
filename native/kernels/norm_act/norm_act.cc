// Statistics, constants and threads around the norm_act kernels.
#include "headgate/norm_act.h"

#include <vector>

#include "headgate/isa.h"
#include "headgate/parallel.h"
#include "kernels/moments/batch_moments.h"
#include "kernels/norm_act/norm_act.h"
#include "kernels/padded.h"

namespace headgate {
namespace {

const NormActKernels& kernels() {
  switch (active_isa()) {
    case Isa::avx512: return norm_act_avx512();
    case Isa::avx2: return norm_act_avx2();
    case Isa::neon: return norm_act_neon();
    case Isa::portable: break;
  }
  return norm_act_portable();
}

int element_bytes(Dtype dtype) { return dtype == Dtype::float32 ? 4 : 2; }

template <class N>  // Norm or NormGrad
Padded<float> constants(const N& norm, int channels) {
  Padded<float> values(3, channels);
  for (int c = 0; c < channels; ++c) {
    values[0][c] = norm.mean[c];
    values[1][c] = norm.rstd[c] * norm.weight[c];
    values[2][c] = norm.bias[c];
  }
  return values;
}

}  // namespace

void norm_act_forward(const NormActForward& op, int threads) {
  BatchMoments moments;
  if (op.norm.training) {
    moments = batch_moments(op.dtype, op.input, op.input_stride, op.rows, op.channels, threads);
  }
  settle(op.norm, op.channels, op.rows, moments.mean.data(), moments.m2.data());
  Padded<float> values = constants(op.norm, op.channels);
  const int parts = parts_for(op.rows, 2 * op.channels * element_bytes(op.dtype), threads);
  const NormForwardKernel kernel = kernels().forward[static_cast<int>(op.dtype)][op.relu][op.residual != nullptr];
  parallel_for(parts, [&](int part) {
    const Range range = slice(op.rows, part, parts);
    kernel({{op.input, op.input_stride, range.begin, range.end, op.channels, values[0], values[1], values[2]},
            op.residual, op.output, op.residual_stride, op.output_stride});
  });
}

void norm_act_backward(const NormActBackward& op, int threads) {
  const int dtype = static_cast<int>(op.dtype);
  Padded<float> values = constants(op.norm, op.channels);
  const int parts = parts_for(op.rows, 2 * op.channels * element_bytes(op.dtype), threads);
  const auto args = [&](int part) {
    const Range range = slice(op.rows, part, parts);
    NormBackwardArgs a{};
    a.rows = {op.input, op.input_stride, range.begin, range.end, op.channels, values[0], values[1], values[2]};
    a.grad_output = op.grad_output, a.grad_output_stride = op.grad_output_stride;
    return a;
  };

  const bool recompute = op.relu && op.output == nullptr, masked = op.relu && op.output != nullptr;
  std::vector<Padded<double>> sums(parts, Padded<double>(2, op.channels));
  const NormBackwardKernel sum = kernels().sums[dtype][masked ? 2 : recompute];
  parallel_for(parts, [&](int part) {
    NormBackwardArgs a = args(part);
    a.output = op.output, a.output_stride = op.output_stride;
    a.grad_residual = op.grad_residual, a.grad_residual_stride = op.grad_residual_stride;
    a.sum_grad = sums[part][0], a.sum_grad_x = sums[part][1];
    sum(a);
  });
  Padded<double>& total = sums[0];
  Padded<float> slopes(2, op.channels);
  for (int c = 0; c < op.channels; ++c) {
    for (int part = 1; part < parts; ++part) {
      total[0][c] += sums[part][0][c];
      total[1][c] += sums[part][1][c];
    }
    const double rstd = op.norm.rstd[c], gain = rstd * op.norm.weight[c], count = static_cast<double>(op.rows);
    op.norm.grad_bias[c] = static_cast<float>(total[0][c]);
    op.norm.grad_weight[c] = static_cast<float>(total[1][c] * rstd);
    if (op.norm.training) {
      slopes[0][c] = static_cast<float>(rstd * rstd * gain * total[1][c] / count);
      slopes[1][c] = static_cast<float>(gain * total[0][c] / count);
    }
  }
  if (op.grad_input == nullptr) return;

  const NormBackwardKernel write = kernels().write[dtype][recompute];
  parallel_for(parts, [&](int part) {
    NormBackwardArgs a = args(part);
    if (masked) a.grad_output = op.grad_residual, a.grad_output_stride = op.grad_residual_stride;
    a.grad_input = op.grad_input, a.grad_input_stride = op.grad_input_stride;
    a.slope = slopes[0], a.offset = slopes[1];
    write(a);
  });
}

}  // namespace headgate
