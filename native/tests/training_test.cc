// The training operators: every instruction set gives what portable code gives. That this is right, tests/ops checks.
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "headgate/gated_norm.h"
#include "headgate/isa.h"
#include "headgate/norm_act.h"
#include "tests/check.h"
#include "tests/isas.h"

namespace headgate {
namespace {

constexpr int kImages = 3, kPixels = 35, kRows = kImages * kPixels;

struct Case {
  Dtype dtype;
  int channels, groups;
  bool relu, residual, training;
};

// Several vectors, less than one, and none whole; groups within a vector, and across vectors.
std::vector<Case> cases() {
  std::vector<Case> all;
  for (Dtype dtype : {Dtype::float32, Dtype::bfloat16}) {
    for (const auto& [channels, groups] : {std::pair{48, 48}, {48, 12}, {48, 2}, {13, 13}, {3, 1}, {30, 5}}) {
      for (bool relu : {false, true}) {
        for (bool residual : {false, true}) {
          for (bool training : {false, true}) all.push_back({dtype, channels, groups, relu, residual, training});
        }
      }
    }
  }
  return all;
}

// Pixels' channels in either dtype.
class Pixels {
 public:
  explicit Pixels(const Case& c)
      : dtype_(c.dtype), wide_(std::size_t{kRows} * c.channels, std::numeric_limits<float>::quiet_NaN()),
        bits_(wide_.size(), 0x7fc0) {}
  // Odd multiples of 1/8, which both dtypes hold exactly.
  Pixels& fill(std::mt19937& random) {
    for (std::size_t i = 0; i < wide_.size(); ++i) {
      wide_[i] = static_cast<float>(static_cast<int>(random() % 32) * 2 - 31) / 8;
      bits_[i] = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(wide_[i]) >> 16);
    }
    return *this;
  }
  void* data() { return dtype_ == Dtype::float32 ? static_cast<void*>(wide_.data()) : bits_.data(); }
  std::vector<float> values() const {
    std::vector<float> all = wide_;
    for (std::size_t i = 0; dtype_ == Dtype::bfloat16 && i < all.size(); ++i) {
      all[i] = std::bit_cast<float>(std::uint32_t{bits_[i]} << 16);
    }
    return all;
  }

 private:
  Dtype dtype_;
  std::vector<float> wide_;
  std::vector<std::uint16_t> bits_;
};

using Results = std::vector<std::pair<std::string, std::vector<float>>>;

// One batch norm's arrays. The constants are such that, outside training, no score and no output is near 0: rounding
// decides nothing.
struct NormArrays {
  std::vector<float> weight, bias, running_mean, running_var, mean, rstd, grad_weight, grad_bias;
  explicit NormArrays(int n)
      : weight(n, 0.75f), bias(n, 0.2137f), running_mean(n, 0.0f), running_var(n, 1.0f), mean(n), rstd(n),
        grad_weight(n), grad_bias(n) {
    for (int c = 0; c < n; ++c) weight[c] = c % 3 == 0 ? -0.5f : 0.75f;
  }
  Norm forward(bool training) {
    return {weight.data(), bias.data(), running_mean.data(), running_var.data(), training, 0.1f, 0.0f, mean.data(),
            rstd.data()};
  }
  NormGrad backward(bool training) {
    return {weight.data(), bias.data(), mean.data(), rstd.data(), training, grad_weight.data(), grad_bias.data()};
  }
  void add_to(Results& results, const std::string& name) const {
    results.emplace_back(name + " running_mean", running_mean);
    results.emplace_back(name + " running_var", running_var);
    results.emplace_back(name + " grad_weight", grad_weight);
    results.emplace_back(name + " grad_bias", grad_bias);
  }
};

Results norm_act(const Case& c) {
  std::mt19937 random(5);
  Pixels x(c), residual(c), output(c), grad(c), grad_residual(c), grad_input(c);
  x.fill(random), residual.fill(random), grad.fill(random);
  NormArrays norm(c.channels), fixed(c.channels);
  const int n = c.channels;
  norm_act_forward({c.dtype, kRows, n, c.relu, x.data(), c.residual ? residual.data() : nullptr, output.data(), n, n, n,
                    norm.forward(c.training)}, 2);
  // Of the fixed statistics, so that no ReLU is in doubt.
  Pixels fixed_output(c);
  norm_act_forward({c.dtype, kRows, n, c.relu, x.data(), c.residual ? residual.data() : nullptr, fixed_output.data(), n,
                    n, n, fixed.forward(false)}, 2);
  const bool masked = c.relu && c.residual;
  norm_act_backward({c.dtype, kRows, n, c.relu, x.data(), masked ? fixed_output.data() : nullptr, grad.data(),
                     masked ? grad_residual.data() : nullptr, grad_input.data(), n, n, n, n, n,
                     fixed.backward(c.training)}, 2);
  Results results{{"output", output.values()}, {"grad_input", grad_input.values()}};
  if (masked) results.emplace_back("grad_residual", grad_residual.values());
  norm.add_to(results, "forward");
  fixed.add_to(results, "backward");
  return results;
}

Results gated_norm(const Case& c) {
  std::mt19937 random(7);
  Pixels f(c), p(c), residual(c), output(c), grad(c), grad_residual(c), grad_final(c), grad_partial(c);
  f.fill(random), p.fill(random), residual.fill(random), grad.fill(random);
  NormArrays final_norm(c.channels), partial_norm(c.channels);
  const int n = c.channels;
  std::vector<float> threshold(c.groups, 0.0137f), score_var(c.groups, 1.0f), scale(c.groups), grad_threshold(c.groups);
  std::vector<float> counts(std::size_t{kImages} * c.groups), grad_counts(counts.size(), 0.25f);
  const GatedNormShape shape{c.dtype, kImages, kPixels, n, c.groups, c.groups != n, 2.0f, c.relu};
  gated_norm_forward({shape, f.data(), p.data(), c.residual ? residual.data() : nullptr, output.data(), n, n, n, n,
                      final_norm.forward(false), partial_norm.forward(false), threshold.data(), score_var.data(),
                      scale.data(), counts.data()}, 2);
  const bool masked = c.relu && c.residual;
  gated_norm_backward({shape, f.data(), p.data(), masked ? output.data() : nullptr, grad.data(), grad_counts.data(),
                       masked ? grad_residual.data() : nullptr, grad_final.data(), grad_partial.data(), n, n, n, n, n,
                       n, n, final_norm.backward(c.training), partial_norm.backward(c.training), threshold.data(),
                       scale.data(), grad_threshold.data()}, 2);
  Results results{{"output", output.values()}, {"grad_final", grad_final.values()},
                  {"grad_partial", grad_partial.values()}, {"grad_threshold", grad_threshold}, {"counts", counts}};
  if (masked) results.emplace_back("grad_residual", grad_residual.values());
  final_norm.add_to(results, "final");
  partial_norm.add_to(results, "partial");
  return results;
}

void compare(Results (*op)(const Case&)) {
  for (const Case& c : cases()) {
    set_isa("portable");
    const Results expected = op(c);
    for (Isa isa : isas()) {
      set_isa(name(isa));
      const Results results = op(c);
      for (std::size_t r = 0; r < results.size(); ++r) {
        double most = 0, apart = 0;
        for (std::size_t i = 0; i < results[r].second.size(); ++i) {
          most = std::max(most, std::abs(double{expected[r].second[i]}));
          const double gap = std::abs(double{results[r].second[i]} - expected[r].second[i]);
          apart = std::isnan(gap) ? std::numeric_limits<double>::infinity() : std::max(apart, gap);
        }
        // Sums over the rows, in any order; in bfloat16 one unit in the last place of the results.
        const double unit = c.dtype == Dtype::float32 ? kRows * 0x1p-23 : 0x1p-7;
        if (!(apart <= unit * most)) {
          check::fail(__FILE__, __LINE__, std::string(name(isa)) + ", " + std::to_string(c.channels) + " channels, " +
                      std::to_string(c.groups) + " groups: " + results[r].first + " is " + std::to_string(apart) +
                      " off, and at most " + std::to_string(unit * most) + " is accepted");
        }
      }
    }
  }
  set_isa("");
}

TEST(norm_act_is_the_same_everywhere) { compare(norm_act); }
TEST(gated_norm_is_the_same_everywhere) { compare(gated_norm); }

}  // namespace
}  // namespace headgate
