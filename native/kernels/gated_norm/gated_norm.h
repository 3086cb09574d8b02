// What the gated_norm kernels of every instruction set provide, and what they are told.
#pragma once

#include <cstdint>

namespace headgate {

// How a kernel sums over the channels that share a decision.
enum class Grouping {
  none,     // every channel decides for itself
  lanes,    // a group lies within a vector: its size is a power of two, at most the width
  scratch,  // any size, over the scratch memory
};

// A range of rows (pixels) of both sums, and what turns them into margins and outputs. With cf = f − mean_f and
// cp = p − mean_p, the two candidates are cf · gain_f + bias_f and cp · gain_p + bias_p, and the margin is
// cp · gain_score − threshold; if grouped, (the group's sum of cp · gain_member) · gain_score − threshold. The margin is
// in units that make 2^margin the surrogate sigmoid's exponential. Arrays of constants are padded with zeros to a
// multiple of 16 channels. Constants are static: each translation unit keeps its own.
struct GatedRows {
  const void* final_sum;
  const void* partial_sum;
  std::int64_t final_stride, partial_stride;
  std::int64_t begin, end;
  std::int64_t pixels;  // rows of one image: counts and their gradients belong to images
  int channels, padded_channels;
  int group_size;  // channels per decision
  const float *mean_f, *gain_f, *bias_f, *mean_p, *gain_p, *bias_p, *gain_score, *threshold, *gain_member;
  float* scratch;  // scratch_floats(padded_channels)
};

struct GatedForwardArgs {
  GatedRows rows;
  const void* residual;
  void* output;
  std::int64_t residual_stride, output_stride;
  float* counts;          // (images from begin / pixels on, channels / group_size), added to
  double* score_squares;  // (channels / group_size), added to: Σ of the squared sums of a group, if grouped
};

// Where the gradient at the ReLU's input comes from.
enum class ReluGrad { none, recompute, output };

struct GatedBackwardArgs {
  GatedRows rows;
  const void* grad_output;
  std::int64_t grad_output_stride;
  const float* grad_counts;  // (images, channels / group_size) or null
  // Sums only:
  const void* output;  // for ReluGrad::output
  void* grad_residual;
  std::int64_t output_stride, grad_residual_stride;
  double* sums[6];  // (padded_channels) each, added to; with g_f, g_p the gradients at the two candidates and s that at
                    // the margin over the slope: Σ g_f, Σ g_f · cf, Σ g_p, Σ g_p · cp, Σ s, Σ s · cp
  // Write only: grad_f = g_f · gain_f + cf · slope_f + offset_f and
  //             grad_p = g_p · gain_p + s · gain_step + cp · slope_p + offset_p
  void* grad_final;
  void* grad_partial;
  std::int64_t grad_final_stride, grad_partial_stride;
  const float *slope_f, *offset_f, *slope_p, *offset_p, *gain_step;
};

using GatedForwardKernel = void (*)(const GatedForwardArgs&);
using GatedBackwardKernel = void (*)(const GatedBackwardArgs&);

// Indexed by Dtype, Grouping, then ReLU (and residual).
struct GatedNormKernels {
  int width;  // lanes of a vector
  GatedForwardKernel forward[2][3][2][2];
  GatedBackwardKernel sums[2][3][3];   // by ReluGrad
  GatedBackwardKernel write[2][3][2];  // ReluGrad none or recompute: after sums, grad_residual serves as grad_output
};

// Rows that kernels of Grouping::scratch take at a time, so that their scratch memory stays in the L1 cache.
static constexpr int grouped_tile(int padded_channels) { return padded_channels >= 512 ? 4 : 2048 / padded_channels; }

// Scores and gaps of a tile, and the counts' gradient of an image.
static constexpr int scratch_floats(int padded_channels) { return (2 * grouped_tile(padded_channels) + 1) * padded_channels; }

const GatedNormKernels& gated_norm_portable();
const GatedNormKernels& gated_norm_neon();
const GatedNormKernels& gated_norm_avx2();
const GatedNormKernels& gated_norm_avx512();

}  // namespace headgate
