// Pools, element-wise operators and concatenation: rows of the output, split over threads.
#include <functional>

#include "engine/step.h"

namespace headgate {
namespace {

class MapStep : public Step {
 public:
  MapStep(const Plan& plan, const Op& op, const KernelSet& kernels)
      : kernels_(kernels.maps), op_(op), function_(function_of(op.activation)) {
    const int channels = plan.values[op.output].channels;
    window_ = {{op.window.kernel[0], op.window.kernel[1]},
               {op.window.stride[0], op.window.stride[1]},
               {op.window.padding[0], op.window.padding[1]},
               {op.window.dilation[0], op.window.dilation[1]},
               op.count_include_pad};
    if (op.kind == OpKind::affine) {
      scale_ = std::make_unique<Aligned<float>>(per_channel(op.weight, channels));
      bias_ = std::make_unique<Aligned<float>>(per_channel(op.bias, channels));
    }
  }

  std::int64_t run(const RunContext& context) const override {
    const Map output = context.map(op_.output), first = context.map(op_.inputs[0]);
    split(context.images * output.height, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
      const RowRange rows{begin, end};
      switch (op_.kind) {
        case OpKind::max_pool: return kernels_.max_pool(first, window_, output, rows);
        case OpKind::avg_pool: return kernels_.avg_pool(first, window_, output, rows);
        case OpKind::adaptive_avg_pool: return kernels_.adaptive_avg_pool(first, output, rows);
        case OpKind::add: return kernels_.add(first, context.map(op_.inputs[1]), output, function_, rows);
        case OpKind::mul: return kernels_.mul(first, context.map(op_.inputs[1]), output, rows);
        case OpKind::affine:
          return kernels_.affine(first, scale_->data(), bias_->data(), output, function_, rows);
        case OpKind::activation: return kernels_.affine(first, nullptr, nullptr, output, function_, rows);
        case OpKind::concat: return concat(context, output, rows);
        case OpKind::conv:
        case OpKind::gated_conv: break;  // steps of their own
      }
    });
    return 0;
  }

 private:
  void concat(const RunContext& context, const Map& output, RowRange rows) const {
    int channel = 0;
    for (int value : op_.inputs) {
      const Map input = context.map(value);
      kernels_.copy_channels(input, output, channel, rows);
      channel += input.channels;
    }
  }

  const MapsKernels& kernels_;
  const Op op_;
  const Function function_;
  PoolWindow window_;
  std::unique_ptr<Aligned<float>> scale_, bias_;
};

}  // namespace

std::unique_ptr<Step> make_map_step(const Plan& plan, const Op& op, const KernelSet& kernels) {
  return std::make_unique<MapStep>(plan, op, kernels);
}

}  // namespace headgate
