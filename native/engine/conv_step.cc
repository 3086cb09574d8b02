// Convolutions without a gate: direct, by Winograd's algorithm, depthwise.
#include "engine/step.h"
#include "engine/winograd.h"
#include "headgate/parallel.h"

namespace headgate {

namespace {

// Below so many pixels, or tiles, to a thread, threads share them and split the output channels.
constexpr std::int64_t kMinPixels = 32, kMinTiles = 12;

// Calls body(part, pixels or tiles, vectors of outputs) for every thread's part of `count` × `vectors`.
template <class F>
void share(std::int64_t count, std::int64_t fewest, int vectors, int threads, F body) {
  if (count >= fewest * threads || vectors == 1) {
    split(count, 1, threads, [&](int part, std::int64_t begin, std::int64_t end) {
      body(part, Range{begin, end}, Range{0, vectors});
    });
  } else {
    split(vectors, 1, threads, [&](int part, std::int64_t begin, std::int64_t end) {
      body(part, Range{0, count}, Range{begin, end});
    });
  }
}

// What follows an operator's sums: its bias, residual and activation.
class Ending {
 public:
  Ending(const Plan& plan, const Op& op, const KernelSet& kernels)
      : maps_(kernels.maps),
        op_(op),
        scale_(per_channel({}, plan.values[op.output].channels, 1.0f)),
        bias_(per_channel(op.bias, plan.values[op.output].channels)),
        clamp_(clamp_of(op.activation)) {}

  // `residual` must live as long as what is returned.
  ConvEpilogue epilogue(const RunContext& context, Map& residual) const {
    ConvEpilogue epilogue{};
    epilogue.kind = Epilogue::plain;
    epilogue.scale = scale_.data(), epilogue.bias = bias_.data();
    epilogue.low = clamp_.low, epilogue.high = clamp_.high;
    if (op_.inputs.size() > 1) {
      residual = context.map(op_.inputs[1]);
      epilogue.residual = &residual;
    }
    return epilogue;
  }

  // What of the activation is not done by the epilogue, for rows of the output.
  void finish(const Map& output, RowRange rows) const {
    if (!clamp_.complete) maps_.affine(output, nullptr, nullptr, output, function_of(op_.activation), rows);
  }
  void finish(const RunContext& context) const {
    const Map output = context.map(op_.output);
    if (clamp_.complete) return;
    split(context.images * output.height, 1, context.threads,
          [&](int, std::int64_t begin, std::int64_t end) { finish(output, {begin, end}); });
  }

 private:
  const MapsKernels& maps_;
  const Op& op_;
  const Aligned<float> scale_, bias_;
  const Clamp clamp_;
};

class ConvStep : public Step {
 public:
  ConvStep(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights)
      : kernels_(kernels.conv),
        op_(op),
        shape_(conv_shape(plan, op, op.groups)),
        weights_(weights.conv(kernels_, shape_, op.weight.data)),
        ending_(plan, op_, kernels) {}

  std::int64_t run(const RunContext& context) const override {
    Map residual;
    const Map output = context.map(op_.output);
    const std::int64_t pixels = context.images * output.height * output.width;
    const int vectors = padded_channels(output.channels) / kLanes;
    const ConvArgs all{&shape_, weights_->data(), context.map(op_.inputs[0]), output,
                       ending_.epilogue(context, residual), 0, pixels, 0, vectors};
    share(pixels, kMinPixels, vectors, context.threads, [&](int, Range of, Range among) {
      ConvArgs part = all;
      part.begin = of.begin, part.end = of.end;
      part.first_vector = static_cast<int>(among.begin), part.last_vector = static_cast<int>(among.end);
      kernels_.run(part);
    });
    ending_.finish(context);
    return 0;
  }

 private:
  const ConvKernels& kernels_;
  const Op op_;
  const ConvShape shape_;
  const PackedWeights weights_;
  const Ending ending_;
};

class WinogradStep : public Step {
 public:
  WinogradStep(const Plan& plan, const Op& op, const WinogradShape& shape, const KernelSet& kernels,
               SharedWeights& weights)
      : kernels_(kernels.winograd),
        op_(op),
        shape_(shape),
        weights_(weights.winograd(kernels_, shape_, op.weight.data)),
        ending_(plan, op_, kernels) {}

  Needs needs(const Layout&, std::int64_t /*images*/) const override {
    Needs needs;
    needs.scratch_bytes = winograd_scratch_size(shape_) * std::int64_t{sizeof(float)};
    return needs;
  }

  std::int64_t run(const RunContext& context) const override {
    Map residual;
    const Map output = context.map(op_.output);
    const std::int64_t rows = (output.height + shape_.tile - 1) / shape_.tile;
    const std::int64_t columns = (output.width + shape_.tile - 1) / shape_.tile;
    const std::int64_t tiles = context.images * rows * columns;
    const int vectors = padded_channels(output.channels) / kLanes;
    const WinogradArgs all{&shape_, weights_->data(), context.map(op_.inputs[0]), output,
                           ending_.epilogue(context, residual), 0, tiles, 0, vectors, nullptr};
    share(tiles, kMinTiles, vectors, context.threads, [&](int i, Range of, Range among) {
      WinogradArgs part = all;
      part.begin = of.begin, part.end = of.end;
      part.first_vector = static_cast<int>(among.begin), part.last_vector = static_cast<int>(among.end);
      part.scratch = reinterpret_cast<float*>(context.scratch) + i * winograd_scratch_size(shape_);
      kernels_.run(part);
    });
    ending_.finish(context);
    return 0;
  }

 private:
  const WinogradKernels& kernels_;
  const Op op_;
  const WinogradShape shape_;
  const PackedWeights weights_;
  const Ending ending_;
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
      : kernels_(kernels.depthwise),
        op_(op),
        shape_{plan.values[op.output].channels,
               {op.window.kernel[0], op.window.kernel[1]},
               {op.window.stride[0], op.window.stride[1]},
               {op.window.padding[0], op.window.padding[1]},
               {op.window.dilation[0], op.window.dilation[1]}},
        weights_(kernels_.packed_size(shape_)),
        ending_(plan, op_, kernels) {
    kernels_.pack(shape_, op.weight.data, weights_.data());
  }

  std::int64_t run(const RunContext& context) const override {
    Map residual;
    const Map output = context.map(op_.output);
    const ConvEpilogue epilogue = ending_.epilogue(context, residual);
    DepthwiseArgs args{};
    args.shape = &shape_;
    args.weights = weights_.data();
    args.input = context.map(op_.inputs[0]), args.output = output;
    args.scale = epilogue.scale, args.bias = epilogue.bias;
    args.low = epilogue.low, args.high = epilogue.high;
    args.residual = epilogue.residual;
    args.last_vector = padded_channels(output.channels) / kLanes;
    const std::int64_t rows = context.images * output.height;
    split(rows, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
      DepthwiseArgs part = args;
      part.begin = begin * output.width, part.end = end * output.width;
      kernels_.run(part);
      ending_.finish(output, {begin, end});
    });
    return 0;
  }

 private:
  const DepthwiseKernels& kernels_;
  const Op op_;
  const DepthwiseShape shape_;
  const Aligned<float> weights_;
  const Ending ending_;
};

}  // namespace

std::unique_ptr<Step> make_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights) {
  if (depthwise(plan, op)) return std::make_unique<DepthwiseStep>(plan, op, kernels);
  if (const auto shape = winograd_shape(plan, op, op.groups)) {
    return std::make_unique<WinogradStep>(plan, op, *shape, kernels, weights);
  }
  return std::make_unique<ConvStep>(plan, op, kernels, weights);
}

}  // namespace headgate
