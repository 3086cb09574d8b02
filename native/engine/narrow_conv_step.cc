// Convolutions in 8-bit integers (docs/design/0003-int8.md) and in bfloat16 (docs/design/0005-bfloat16.md).
#include <bit>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "engine/narrow_conv.h"
#include "engine/step.h"

namespace headgate {
namespace {

const Map* pointer(const std::optional<Map>& map) { return map ? &*map : nullptr; }
const RoundedOutput* pointer(const std::optional<RoundedOutput>& rounded) { return rounded ? &*rounded : nullptr; }

std::int64_t in_lines(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

struct Affine {
  Aligned<float> scale, bias;
};

class NarrowConvStep : public Step {
 public:
  NarrowConvStep(const Plan& plan, const Op& op, const KernelSet& kernels) : conv_(plan, op, kernels) {
    const NarrowTensor weights = conv_.weights();
    weights_ = pack_narrow(conv_.shape(), weights.values.data(), conv_.order(), conv_.zero(), conv_.kernels().format);
    affine_.emplace(Affine{conv_.scaled({}, weights), per_channel(op.bias, conv_.shape().out_channels)});
  }

  Needs needs(const Layout& layout, std::int64_t images) const override {
    Needs needs;
    needs.scratch_bytes =
        conv_.input_bytes(layout, images) + in_lines(conv_.kernels().conv_scratch_bytes(conv_.shape().out_channels));
    return needs;
  }

  std::int64_t run(const RunContext& context) const override {
    const std::optional<Map> residual = conv_.residual(context);
    const std::optional<RoundedOutput> rounded = conv_.rounded_output(context);
    NarrowEnding ending{};
    ending.kind = NarrowEpilogue::plain;
    ending.common.scale = affine_->scale.data(), ending.common.bias = affine_->bias.data();
    ending.common.low = conv_.clamp().low, ending.common.high = conv_.clamp().high;
    ending.common.residual = pointer(residual), ending.rounded = pointer(rounded);
    const std::int64_t scratch_bytes = needs(context.layout, context.images).scratch_bytes;
    conv_.each_region(context, [&](int part, const NarrowConv::Region& region) {
      std::byte* scratch = context.scratch + part * scratch_bytes;
      const NarrowMap input = conv_.input(context, region, scratch);
      conv_.kernels().conv({&conv_.shape(), weights_.view(), input, context.map(conv_.op().output), ending,
                            conv_.begin(region), conv_.end(region), scratch});
    });
    conv_.activate(context);
    return 0;
  }

 private:
  const NarrowConv conv_;
  NarrowWeights weights_;
  std::optional<Affine> affine_;
};

// Per pixel and channel, or group of channels.
class NarrowGatedConvStep : public GatedStep {
 public:
  NarrowGatedConvStep(const Plan& plan, const Op& op, const KernelSet& kernels)
      : conv_(plan, op, kernels),
        gating_(*conv_.op().gating),
        channels_(conv_.shape().out_channels),
        gain_(conv_.padded()),
        threshold_(conv_.padded()) {
    const NarrowTensor weights = conv_.weights();
    base_ = pack_narrow(conv_.shape(), base_weight(weights.values).data(), conv_.order(), conv_.zero(), format());
    score_.emplace(Affine{conv_.scaled(gating_.score_scale, weights), per_channel(gating_.score_bias, channels_)});
    partial_.emplace(Affine{conv_.scaled(gating_.partial_scale, weights), per_channel(gating_.partial_bias, channels_)});
    final_.emplace(Affine{conv_.scaled(gating_.final_scale, weights), per_channel(gating_.final_bias, channels_)});
    for (int c = 0; c < channels_; ++c) threshold_.data()[c] = gating_.threshold.data[c / group_size()];
    for (int c = 0; by_group() && c < channels_; ++c) {
      gain_.data()[c] = gating_.group_scale.data[c / group_size()] / static_cast<float>(group_size());
    }
    use(completion_of(Path::sparse, weights));
  }

  Needs needs(const Layout& layout, std::int64_t images) const override {
    Needs needs;
    needs.mask_words = images * mask_words();
    needs.scores = conv_.padded();  // thresholds
    needs.scratch_bytes = conv_.input_bytes(layout, images) +
                          in_lines(std::max(kernels().conv_scratch_bytes(channels_),
                                            kernels().conditional_scratch_bytes(channels_, gating_.decisions)));
    return needs;
  }

  Completion completion(Path path) const override { return completion_of(path, conv_.weights()); }

  std::int64_t run(const RunContext& context) const override {
    for (int c = 0; c < conv_.padded(); ++c) {
      // Padding never opens.
      context.scores[c] = c < channels_ ? threshold_.data()[c] + context.shift : std::numeric_limits<float>::infinity();
    }
    const Completion completion = used();
    const Map output = context.map(conv_.op().output);
    const std::optional<Map> residual = conv_.residual(context);
    const std::optional<RoundedOutput> rounded = conv_.rounded_output(context);
    const NarrowEnding base = base_ending(context, pointer(residual), pointer(rounded));
    const NarrowEnding masked = masked_ending(base);
    const std::int64_t scratch_bytes = needs(context.layout, context.images).scratch_bytes;
    conv_.each_region(context, [&](int part, const NarrowConv::Region& region) {
      std::byte* scratch = context.scratch + part * scratch_bytes;
      const NarrowMap input = conv_.input(context, region, scratch);
      const ConvShape& shape = conv_.shape();
      const NarrowView rest = std::get<PackedNarrow>(completion.weights)->view();
      const std::int64_t begin = conv_.begin(region), end = conv_.end(region);
      kernels().conv({&shape, base_.view(), input, output, base, begin, end, scratch});
      if (completion.path == Path::masked) {
        kernels().conv({&shape, rest, input, output, masked, begin, end, scratch});
      } else {
        kernels().conditional({&shape, rest, input, output, final_->scale.data(), final_->bias.data(), conv_.clamp().low,
                               conv_.clamp().high, pointer(residual), pointer(rounded), context.masks, begin, end,
                               scratch});
      }
    });
    conv_.activate(context);
    std::int64_t open = 0;
    for (std::int64_t i = 0; i < context.images * mask_words(); ++i) open += std::popcount(context.masks[i]);
    return open / group_size();
  }

 private:
  NarrowEnding base_ending(const RunContext& context, const Map* residual, const RoundedOutput* rounded) const {
    NarrowEnding ending{};
    ending.kind = by_group() ? NarrowEpilogue::group : NarrowEpilogue::gate;
    ending.gain = gain_.data(), ending.group_size = group_size();
    ending.rounded = rounded;
    ConvEpilogue& common = ending.common;
    common.scale = partial_->scale.data(), common.bias = partial_->bias.data();
    common.low = conv_.clamp().low, common.high = conv_.clamp().high;
    common.residual = residual;
    common.score_scale = score_->scale.data(), common.score_bias = score_->bias.data();
    common.two_sided = gating_.two_sided, common.center = gating_.center;
    common.threshold = context.scores;
    common.masks = context.masks;
    return ending;
  }

  NarrowEnding masked_ending(NarrowEnding ending) const {
    ending.kind = NarrowEpilogue::masked;
    ending.common.scale = final_->scale.data(), ending.common.bias = final_->bias.data();
    return ending;
  }

  // Of all that the base path leaves out: by decision, or, for masked arithmetic, by base block, whose outputs all read
  // the same.
  Completion completion_of(Path path, const NarrowTensor& weights) const {
    const int blocks = path == Path::masked ? conv_.shape().blocks : gating_.decisions;
    return {path, std::make_shared<const NarrowWeights>(pack_narrow_rest(conv_.shape(), weights.values.data(), blocks,
                                                                         conv_.order(), conv_.zero(), format()))};
  }

  // The base path's weights [out, inputs_per_block, kh, kw], picked from the full ones.
  std::vector<std::int16_t> base_weight(const std::vector<std::int16_t>& full) const {
    const ConvShape& shape = conv_.shape();
    const std::int64_t taps = std::int64_t{shape.kernel[0]} * shape.kernel[1];
    const int outputs = channels_ / shape.blocks;
    std::vector<std::int16_t> weight;
    weight.reserve(channels_ * shape.inputs_per_block * taps);
    for (int c = 0; c < channels_; ++c) {
      const std::int32_t* inputs = shape.inputs.data() + std::int64_t{c / outputs} * shape.inputs_per_block;
      for (int i = 0; i < shape.inputs_per_block; ++i) {
        const auto from = full.begin() + (std::int64_t{c} * shape.in_channels + inputs[i]) * taps;
        weight.insert(weight.end(), from, from + taps);
      }
    }
    return weight;
  }

  const NarrowKernels& kernels() const { return conv_.kernels(); }
  NarrowFormat format() const { return kernels().format; }
  bool by_group() const { return gating_.granularity == Granularity::group; }
  int group_size() const { return channels_ / gating_.decisions; }
  std::int64_t mask_words() const { return conv_.pixels() * (conv_.padded() / kLanes); }  // of an image

  const NarrowConv conv_;
  const Gating& gating_;
  const int channels_;
  const Aligned<float> gain_, threshold_;
  NarrowWeights base_;
  std::optional<Affine> score_, partial_, final_;
};

}  // namespace

std::unique_ptr<Step> make_narrow_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels) {
  if (op.gating) return std::make_unique<NarrowGatedConvStep>(plan, op, kernels);
  return std::make_unique<NarrowConvStep>(plan, op, kernels);
}

}  // namespace headgate
