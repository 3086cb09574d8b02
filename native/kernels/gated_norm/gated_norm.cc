// Statistics, constants and threads around the gated_norm kernels.
#include "headgate/gated_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "headgate/isa.h"
#include "headgate/parallel.h"
#include "kernels/gated_norm/gated_norm.h"
#include "kernels/moments/batch_moments.h"
#include "kernels/padded.h"

namespace headgate {
namespace {

constexpr float kScoreEps = 1e-5f;  // as headgate.ops.decision.SCORE_EPS

const GatedNormKernels& kernels() {
  switch (active_isa()) {
    case Isa::avx512: return gated_norm_avx512();
    case Isa::avx2: return gated_norm_avx2();
    case Isa::neon: return gated_norm_neon();
    case Isa::portable: break;
  }
  return gated_norm_portable();
}

int grouping(const GatedNormShape& shape) {
  if (!shape.grouped) return static_cast<int>(Grouping::none);
  const int size = shape.channels / shape.groups;
  const bool within_vector = size <= kernels().width && (size & (size - 1)) == 0;
  return static_cast<int>(within_vector ? Grouping::lanes : Grouping::scratch);
}

int element_bytes(const GatedNormShape& shape) { return shape.dtype == Dtype::float32 ? 4 : 2; }

// The constants behind GatedRows.
class Constants {
 public:
  template <class N>  // Norm or NormGrad
  Constants(const GatedNormShape& shape, const N& final_norm, const N& partial_norm, const float* threshold,
            const float* scale)
      : values_(9, shape.channels) {
    const int size = shape.channels / shape.groups;
    const float unit = shape.slope * 1.44269504f;  // slope · log2(e)
    for (int c = 0; c < shape.channels; ++c) {
      const float rstd = partial_norm.rstd[c];
      values_[0][c] = final_norm.mean[c];
      values_[1][c] = final_norm.rstd[c] * final_norm.weight[c];
      values_[2][c] = final_norm.bias[c];
      values_[3][c] = partial_norm.mean[c];
      values_[4][c] = rstd * partial_norm.weight[c];
      values_[5][c] = partial_norm.bias[c];
      values_[6][c] = (shape.grouped ? scale[c / size] : rstd) * unit;
      values_[7][c] = threshold[c / size] * unit;
      values_[8][c] = rstd / static_cast<float>(size);
    }
  }

  template <class Op>
  GatedRows rows(const Op& op, Range range, std::int64_t pixels, float* scratch) {
    return {op.final_sum, op.partial_sum, op.final_stride, op.partial_stride, range.begin, range.end, pixels,
            op.shape.channels, Padded<float>::padded(op.shape.channels), op.shape.channels / op.shape.groups,
            values_[0], values_[1], values_[2], values_[3], values_[4], values_[5], values_[6], values_[7], values_[8],
            scratch};
  }

 private:
  Padded<float> values_;
};

void settle_norms(const GatedNormForward& op, std::int64_t rows, int threads) {
  const GatedNormShape& shape = op.shape;
  const int c = shape.channels;
  // [F | P] of one convolution: one walk over memory for both.
  const bool adjacent = static_cast<const char*>(op.final_sum) + c * element_bytes(shape) == op.partial_sum &&
                        op.final_stride == op.partial_stride;
  BatchMoments final_moments, partial_moments;
  const double *mean = nullptr, *m2 = nullptr;
  if (op.final_norm.training) {
    const int both = adjacent && op.partial_norm.training ? 2 * c : c;
    final_moments = batch_moments(shape.dtype, op.final_sum, op.final_stride, rows, both, threads);
    if (both == 2 * c) mean = final_moments.mean.data() + c, m2 = final_moments.m2.data() + c;
  }
  if (op.partial_norm.training && mean == nullptr) {
    partial_moments = batch_moments(shape.dtype, op.partial_sum, op.partial_stride, rows, c, threads);
    mean = partial_moments.mean.data(), m2 = partial_moments.m2.data();
  }
  settle(op.final_norm, c, rows, final_moments.mean.data(), final_moments.m2.data());
  settle(op.partial_norm, c, rows, mean, m2);
}

}  // namespace

void gated_norm_forward(const GatedNormForward& op, int threads) {
  const GatedNormShape& shape = op.shape;
  const std::int64_t rows = shape.images * shape.pixels;
  const int channels = shape.channels, groups = shape.groups;
  settle_norms(op, rows, threads);
  if (shape.grouped) {
    for (int g = 0; g < groups; ++g) op.scale[g] = 1 / std::sqrt(op.score_var[g] + kScoreEps);
  }
  Constants constants(shape, op.final_norm, op.partial_norm, op.threshold, op.scale);
  const int parts = parts_for(rows, 3 * channels * element_bytes(shape), threads);
  // The first part counts in place, the others beside: parts may meet within an image.
  std::fill_n(op.counts, shape.images * groups, 0.0f);
  std::vector<std::vector<float>> counts(parts);
  std::vector<std::vector<double>> squares(parts, std::vector<double>(groups));
  const GatedForwardKernel kernel =
      kernels().forward[static_cast<int>(shape.dtype)][grouping(shape)][shape.relu][op.residual != nullptr];
  parallel_for(parts, [&](int part) {
    const Range range = slice(rows, part, parts);
    std::vector<float> scratch(scratch_floats(Padded<float>::padded(channels)));
    if (part > 0) counts[part].resize(((range.end - 1) / shape.pixels - range.begin / shape.pixels + 1) * groups);
    kernel({constants.rows(op, range, shape.pixels, scratch.data()), op.residual, op.output, op.residual_stride,
            op.output_stride, part > 0 ? counts[part].data() : op.counts, squares[part].data()});
  });
  for (int part = 1; part < parts; ++part) {
    float* to = op.counts + slice(rows, part, parts).begin / shape.pixels * groups;
    for (std::size_t i = 0; i < counts[part].size(); ++i) to[i] += counts[part][i];
    for (int g = 0; g < groups; ++g) squares[0][g] += squares[part][g];
  }
  if (shape.grouped && op.partial_norm.training) {
    for (int g = 0; g < groups; ++g) {
      op.score_var[g] = lerp(op.score_var[g], static_cast<float>(squares[0][g] / static_cast<double>(rows)), op.partial_norm.momentum);
    }
  }
}

void gated_norm_backward(const GatedNormBackward& op, int threads) {
  const GatedNormShape& shape = op.shape;
  const std::int64_t rows = shape.images * shape.pixels;
  const int channels = shape.channels, size = channels / shape.groups, padded = Padded<float>::padded(channels);
  // Where images need not be told apart, blocks of rows may span them.
  const std::int64_t pixels = op.grad_counts == nullptr ? rows : shape.pixels;
  const int dtype = static_cast<int>(shape.dtype);
  Constants constants(shape, op.final_norm, op.partial_norm, op.threshold, op.scale);
  const int parts = parts_for(rows, 3 * channels * element_bytes(shape), threads);
  const auto args = [&](Range range, float* scratch) {
    GatedBackwardArgs a{};
    a.rows = constants.rows(op, range, pixels, scratch);
    a.grad_output = op.grad_output, a.grad_output_stride = op.grad_output_stride;
    a.grad_counts = op.grad_counts;
    return a;
  };

  ReluGrad relu = ReluGrad::none;
  if (shape.relu) relu = op.output == nullptr ? ReluGrad::recompute : ReluGrad::output;
  std::vector<Padded<double>> sums(parts, Padded<double>(6, channels));
  const GatedBackwardKernel sum = kernels().sums[dtype][grouping(shape)][static_cast<int>(relu)];
  parallel_for(parts, [&](int part) {
    std::vector<float> scratch(scratch_floats(padded));
    GatedBackwardArgs a = args(slice(rows, part, parts), scratch.data());
    a.output = op.output, a.output_stride = op.output_stride;
    a.grad_residual = op.grad_residual, a.grad_residual_stride = op.grad_residual_stride;
    for (int i = 0; i < 6; ++i) a.sums[i] = sums[part][i];
    sum(a);
  });
  Padded<double>& total = sums[0];
  for (int part = 1; part < parts; ++part) {
    for (int i = 0; i < 6 * padded; ++i) total[0][i] += sums[part][0][i];
  }

  Padded<float> values(5, channels);
  for (int c = 0; c < channels; ++c) {
    const double rstd_f = op.final_norm.rstd[c], rstd_p = op.partial_norm.rstd[c];
    const double gain_f = rstd_f * op.final_norm.weight[c], gain_p = rstd_p * op.partial_norm.weight[c];
    op.final_norm.grad_bias[c] = static_cast<float>(total[0][c]);
    op.final_norm.grad_weight[c] = static_cast<float>(total[1][c] * rstd_f);
    op.partial_norm.grad_bias[c] = static_cast<float>(total[2][c]);
    op.partial_norm.grad_weight[c] = static_cast<float>(total[3][c] * rstd_p);
    if (c % size == 0) op.grad_threshold[c / size] = static_cast<float>(-shape.slope * total[4][c]);
    // From the margin to P, before the batch statistics.
    const double gain_step = shape.slope * rstd_p * (shape.grouped ? op.scale[c / size] / size : 1.0);
    values[4][c] = static_cast<float>(gain_step);
    const double count = static_cast<double>(rows);
    if (op.final_norm.training) {
      values[0][c] = static_cast<float>(-rstd_f * rstd_f * gain_f * total[1][c] / count);
      values[1][c] = static_cast<float>(-gain_f * total[0][c] / count);
    }
    if (op.partial_norm.training) {
      values[2][c] = static_cast<float>(-rstd_p * rstd_p * (gain_p * total[3][c] + gain_step * total[5][c]) / count);
      values[3][c] = static_cast<float>(-(gain_p * total[2][c] + gain_step * total[4][c]) / count);
    }
  }
  if (op.grad_final == nullptr) return;

  const bool masked = relu == ReluGrad::output;  // the reduction wrote the masked gradient
  const GatedBackwardKernel write = kernels().write[dtype][grouping(shape)][relu == ReluGrad::recompute];
  parallel_for(parts, [&](int part) {
    std::vector<float> scratch(scratch_floats(padded));
    GatedBackwardArgs a = args(slice(rows, part, parts), scratch.data());
    if (masked) a.grad_output = op.grad_residual, a.grad_output_stride = op.grad_residual_stride;
    a.grad_final = op.grad_final, a.grad_final_stride = op.grad_final_stride;
    a.grad_partial = op.grad_partial, a.grad_partial_stride = op.grad_partial_stride;
    a.slope_f = values[0], a.offset_f = values[1], a.slope_p = values[2], a.offset_p = values[3];
    a.gain_step = values[4];
    write(a);
  });
}

}  // namespace headgate
