// Convolutions without a gate: dense, grouped, depthwise.
#include "engine/step.h"

namespace headgate {

namespace {

// Below so many pixels to a thread, threads share the pixels and split the output channels.
constexpr std::int64_t kMinPixels = 32;

class ConvStep : public Step {
 public:
  ConvStep(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights)
      : kernels_(kernels),
        op_(op),
        shape_(conv_shape(plan, op, op.groups)),
        weights_(weights.conv(kernels.conv, shape_, op.weight.data)),
        scale_(per_channel({}, shape_.out_channels, 1.0f)),
        bias_(per_channel(op.bias, shape_.out_channels)),
        clamp_(clamp_of(op.activation)) {}

  std::int64_t run(const RunContext& context) const override {
    const Map output = context.map(op_.output);
    Map residual{};
    if (op_.inputs.size() > 1) residual = context.map(op_.inputs[1]);
    ConvArgs args{};
    args.shape = &shape_;
    args.weights = weights_->data();
    args.input = context.map(op_.inputs[0]);
    args.output = output;
    args.epilogue.kind = Epilogue::plain;
    args.epilogue.scale = scale_.data(), args.epilogue.bias = bias_.data();
    args.epilogue.low = clamp_.low, args.epilogue.high = clamp_.high;
    args.epilogue.residual = op_.inputs.size() > 1 ? &residual : nullptr;
    const std::int64_t pixels = context.images * output.height * output.width;
    const int vectors = padded_channels(output.channels) / kLanes;
    args.begin = 0, args.end = pixels;
    args.first_vector = 0, args.last_vector = vectors;
    if (pixels >= kMinPixels * context.threads || vectors == 1) {
      split(pixels, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
        ConvArgs part = args;
        part.begin = begin, part.end = end;
        kernels_.conv.run(part);
      });
    } else {
      split(vectors, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
        ConvArgs part = args;
        part.first_vector = static_cast<int>(begin), part.last_vector = static_cast<int>(end);
        kernels_.conv.run(part);
      });
    }
    if (!clamp_.complete) {
      split(context.images * output.height, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
        kernels_.maps.affine(output, nullptr, nullptr, output, function_of(op_.activation), {begin, end});
      });
    }
    return 0;
  }

 private:
  const KernelSet kernels_;
  const Op op_;
  const ConvShape shape_;
  const PackedWeights weights_;
  const Aligned<float> scale_, bias_;
  const Clamp clamp_;
};

// One input and one output channel to a group, in order.
bool depthwise(const Plan& plan, const Op& op) {
  const int channels = plan.values[op.output].channels;
  if (op.groups.blocks != channels || op.groups.per_block != 1 || plan.values[op.inputs[0]].channels != channels) {
    return false;
  }
  for (int c = 0; c < channels; ++c) {
    if (op.groups.channels[c] != c) return false;
  }
  return true;
}

class DepthwiseStep : public Step {
 public:
  DepthwiseStep(const Plan& plan, const Op& op, const KernelSet& kernels)
      : kernels_(kernels),
        op_(op),
        shape_{plan.values[op.output].channels,
               {op.window.kernel[0], op.window.kernel[1]},
               {op.window.stride[0], op.window.stride[1]},
               {op.window.padding[0], op.window.padding[1]},
               {op.window.dilation[0], op.window.dilation[1]}},
        weights_(kernels.depthwise.packed_size(shape_)),
        scale_(per_channel({}, shape_.channels, 1.0f)),
        bias_(per_channel(op.bias, shape_.channels)),
        clamp_(clamp_of(op.activation)) {
    kernels.depthwise.pack(shape_, op.weight.data, weights_.data());
  }

  std::int64_t run(const RunContext& context) const override {
    const Map output = context.map(op_.output);
    Map residual{};
    if (op_.inputs.size() > 1) residual = context.map(op_.inputs[1]);
    DepthwiseArgs args{};
    args.shape = &shape_;
    args.weights = weights_.data();
    args.input = context.map(op_.inputs[0]), args.output = output;
    args.scale = scale_.data(), args.bias = bias_.data();
    args.low = clamp_.low, args.high = clamp_.high;
    args.residual = op_.inputs.size() > 1 ? &residual : nullptr;
    args.last_vector = padded_channels(output.channels) / kLanes;
    const std::int64_t rows = context.images * output.height;
    split(rows, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
      DepthwiseArgs part = args;
      part.begin = begin * output.width, part.end = end * output.width;
      kernels_.depthwise.run(part);
      if (!clamp_.complete) {
        kernels_.maps.affine(output, nullptr, nullptr, output, function_of(op_.activation), {begin, end});
      }
    });
    return 0;
  }

 private:
  const KernelSet kernels_;
  const Op op_;
  const DepthwiseShape shape_;
  const Aligned<float> weights_, scale_, bias_;
  const Clamp clamp_;
};

}  // namespace

std::unique_ptr<Step> make_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights) {
  if (depthwise(plan, op)) return std::make_unique<DepthwiseStep>(plan, op, kernels);
  return std::make_unique<ConvStep>(plan, op, kernels, weights);
}

}  // namespace headgate
