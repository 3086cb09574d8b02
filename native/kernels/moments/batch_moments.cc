#include "kernels/moments/batch_moments.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "headgate/isa.h"
#include "headgate/parallel.h"
#include "kernels/moments/moments.h"

namespace headgate {
namespace {

const MomentsKernels& kernels() {
  switch (active_isa()) {
    case Isa::avx512: return moments_avx512();
    case Isa::avx2: return moments_avx2();
    case Isa::neon: return moments_neon();
    case Isa::portable: break;
  }
  return moments_portable();
}

}  // namespace

BatchMoments batch_moments(Dtype dtype, const void* x, std::int64_t stride, std::int64_t rows, int channels, int threads) {
  const int parts = parts_for(rows, channels * (dtype == Dtype::float32 ? 4 : 2), threads);
  std::vector<BatchMoments> partial(parts, {std::vector<double>(channels), std::vector<double>(channels)});
  const MomentsKernel kernel = kernels().of[static_cast<int>(dtype)];
  parallel_for(parts, [&](int part) {
    const Range range = slice(rows, part, parts);
    kernel({x, stride, range.begin, range.end, channels, partial[part].mean.data(), partial[part].m2.data()});
  });
  BatchMoments& total = partial[0];
  double count = static_cast<double>(slice(rows, 0, parts).end);
  for (int part = 1; part < parts; ++part) {
    const Range range = slice(rows, part, parts);
    const double more = static_cast<double>(range.end - range.begin), share = more / (count + more);
    for (int c = 0; c < channels; ++c) {
      const double apart = partial[part].mean[c] - total.mean[c];
      total.mean[c] += apart * share;
      total.m2[c] += partial[part].m2[c] + apart * apart * count * share;
    }
    count += more;
  }
  return std::move(total);
}

float lerp(float start, float end, float weight) {
  return weight < 0.5f ? start + weight * (end - start) : end - (end - start) * (1 - weight);
}

void settle(const Norm& norm, int channels, std::int64_t rows, const double* mean, const double* m2) {
  const double count = static_cast<double>(rows);
  const float unbias = static_cast<float>(count / std::max(count - 1, 1.0));
  for (int c = 0; c < channels; ++c) {
    double var = norm.running_var[c];
    if (norm.training) {
      var = m2[c] / count;
      norm.mean[c] = static_cast<float>(mean[c]);
      norm.running_mean[c] = lerp(norm.running_mean[c], norm.mean[c], norm.momentum);
      norm.running_var[c] = lerp(norm.running_var[c], static_cast<float>(var) * unbias, norm.momentum);
    } else {
      norm.mean[c] = norm.running_mean[c];
    }
    norm.rstd[c] = static_cast<float>(1 / std::sqrt(var + static_cast<double>(norm.eps)));
  }
}

}  // namespace headgate
