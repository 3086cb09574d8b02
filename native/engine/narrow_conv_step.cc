// Convolutions in 8-bit integers (docs/design/0003-int8.md) and in bfloat16 (docs/design/0005-bfloat16.md), gated or not.
// A few images, or rows, at a time are rounded, unless what made them did so (held.h), and convolved while they are in the
// cache.
#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <vector>

#include "engine/frames.h"
#include "engine/held.h"
#include "engine/step.h"
#include "kernels/narrow/packing.h"

namespace headgate {
namespace {

// Rounded at a time, if they are of several images: they stay in the second cache while they are convolved.
constexpr std::int64_t kChunkBytes = 1 << 20;

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Output rows of some images.
struct Region {
  std::int64_t first_image, last_image;
  int first_row, last_row;
};

class NarrowConvStep : public Step {
 public:
  NarrowConvStep(const Plan& plan, const Op& op, const KernelSet& kernels)
      : kernels_(narrow_kernels(op, kernels)),
        maps_(kernels.maps),
        op_(op),
        shape_(narrow_shape(plan, op)),
        channels_(shape_.out_channels),
        padded_(padded_channels(channels_)),
        input_(plan.values[op.inputs[0]]),
        output_(plan.values[op.output]),
        pixels_(std::int64_t{output_.height} * output_.width),
        order_(narrow_order(plan, op, kernels)),
        rounding_(rounding_of(op)),
        scale_(op.int8 ? op.int8->scale : 1.0f),
        clamp_(clamp_of(op.activation)) {
    const std::int64_t per_output = op.weight.shape[1] * op.window.kernel[0] * op.window.kernel[1];
    const NarrowTensor weight = (op.int8 ? int8_weights : bfloat16_weights)(op.weight.data, channels_, per_output);
    if (!op.gating) {
      base_ = pack_narrow(shape_, weight.values.data(), order_, rounding_.zero, kernels_.format);
      plain_.emplace(Affine{scaled({}, weight), per_channel(op.bias, channels_)});
      return;
    }
    const Gating& gating = *op_.gating;
    base_ = pack_narrow(shape_, base_weight(weight.values).data(), order_, rounding_.zero, kernels_.format);
    rest_ = pack_narrow_rest(shape_, weight.values.data(), gating.decisions, order_, rounding_.zero, kernels_.format);
    score_.emplace(Affine{scaled(gating.score_scale, weight), per_channel(gating.score_bias, channels_)});
    plain_.emplace(Affine{scaled(gating.partial_scale, weight), per_channel(gating.partial_bias, channels_)});
    final_.emplace(Affine{scaled(gating.final_scale, weight), per_channel(gating.final_bias, channels_)});
    gain_.emplace(padded_);
    threshold_.emplace(padded_);
    for (int c = 0; c < channels_; ++c) threshold_->data()[c] = gating.threshold.data[c / group_size()];
    for (int c = 0; gating.granularity == Granularity::group && c < channels_; ++c) {
      gain_->data()[c] = gating.group_scale.data[c / group_size()] / static_cast<float>(group_size());
    }
  }

  Needs needs(const Layout& layout, std::int64_t images) const override {
    Needs needs;
    const Map output = layout.map(op_.output, nullptr, images);
    const Region largest{0, std::min(images, images_at_a_time()), 0, output.height};
    needs.scratch_bytes = kernel_bytes();
    if (!reads_rounded(layout)) needs.scratch_bytes += rounded_bytes(rounded_map(largest, nullptr));
    if (op_.gating) {
      needs.mask_words = images * pixels_ * (padded_ / kLanes);
      needs.scores = padded_;  // thresholds
    }
    return needs;
  }

  std::int64_t run(const RunContext& context) const override {
    const Map output = context.map(op_.output);
    for (int c = 0; op_.gating && c < padded_; ++c) {
      // Padding never opens.
      context.scores[c] = c < channels_ ? threshold_->data()[c] + context.shift
                                        : std::numeric_limits<float>::infinity();
    }
    std::optional<RoundedOutput> rounded;
    if (const auto& held = context.layout.held(op_.output).rounded) {
      rounded = {context.rounded(op_.output), held->rounding};
      fill_frames(rounded->map, held->element_bytes, kernels_.zero_byte(held->rounding));
    }
    const std::int64_t scratch = needs(context.layout, context.images).scratch_bytes;
    each_region(context, output, [&](int part, const Region& region) {
      region_of(context, output, rounded ? &*rounded : nullptr, region, context.scratch + part * scratch);
    });
    if (!clamp_.complete) {
      split(context.images * output.height, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
        maps_.affine(output, nullptr, nullptr, output, function_of(op_.activation), {begin, end});
      });
    }
    return op_.gating ? open_decisions(context) : 0;
  }

 private:
  struct Affine {
    Aligned<float> scale, bias;
  };

  bool reads_rounded(const Layout& layout) const { return order_.identity && layout.held(op_.inputs[0]).rounded; }

  // What a region reads, in numbers that were rounded before or are now, into `scratch`, which moves on behind them.
  NarrowMap input_of(const RunContext& context, const Region& region, std::byte*& scratch) const {
    if (reads_rounded(context.layout)) return context.rounded(op_.inputs[0]);
    const NarrowMap rounded = rounded_map(region, scratch);
    kernels_.round({context.map(op_.inputs[0]), rounded, order_.identity ? nullptr : order_.channel_at.data(), rounding_});
    scratch += rounded_bytes(rounded);
    return rounded;
  }

  void region_of(const RunContext& context, const Map& output, const RoundedOutput* rounded, const Region& region,
                 std::byte* scratch) const {
    Map residual{};
    if (op_.inputs.size() > 1) residual = context.map(op_.inputs[1]);
    const Map* residual_or_null = op_.inputs.size() > 1 ? &residual : nullptr;
    const NarrowMap input = input_of(context, region, scratch);
    // Adjacent within an image, and across images, of which a region has all rows.
    const std::int64_t begin = region.first_image * pixels_ + std::int64_t{region.first_row} * output.width;
    const std::int64_t end = (region.last_image - 1) * pixels_ + std::int64_t{region.last_row} * output.width;
    kernels_.conv({&shape_, base_.view(), input, output, ending(context, residual_or_null, rounded), begin, end, scratch});
    if (!op_.gating) return;
    kernels_.conditional({&shape_, rest_.view(), input, output, final_->scale.data(), final_->bias.data(), clamp_.low,
                          clamp_.high, residual_or_null, rounded, context.masks, begin, end, scratch});
  }

  NarrowEnding ending(const RunContext& context, const Map* residual, const RoundedOutput* rounded) const {
    NarrowEnding ending{};
    ending.rounded = rounded;
    ConvEpilogue& common = ending.common;
    common.scale = plain_->scale.data(), common.bias = plain_->bias.data();
    common.low = clamp_.low, common.high = clamp_.high;
    common.residual = residual;
    ending.kind = NarrowEpilogue::plain;
    if (op_.gating) {
      const bool group = op_.gating->granularity == Granularity::group;
      ending.kind = group ? NarrowEpilogue::group : NarrowEpilogue::gate;
      ending.gain = gain_->data(), ending.group_size = group_size();
      common.score_scale = score_->scale.data(), common.score_bias = score_->bias.data();
      common.two_sided = op_.gating->two_sided, common.center = op_.gating->center;
      common.threshold = context.scores;
      common.masks = context.masks;
    }
    return ending;
  }

  // The rows that a region's outputs read.
  NarrowMap rounded_map(const Region& region, std::byte* data) const {
    const int reach = shape_.dilation[0] * (shape_.kernel[0] - 1) + 1;
    NarrowMap map{};
    map.data = data;
    map.first_image = region.first_image, map.last_image = region.last_image;
    map.first_row = region.first_row * shape_.stride[0] - shape_.padding[0];
    map.last_row = (region.last_row - 1) * shape_.stride[0] - shape_.padding[0] + reach;
    map.border = shape_.padding[1];
    map.height = input_.height, map.width = input_.width;
    map.pixel_stride = order_.elements();
    map.row_stride = (std::int64_t{input_.width} + 2 * map.border) * map.pixel_stride;
    map.image_stride = (map.last_row - map.first_row) * map.row_stride;
    return map;
  }

  std::int64_t rounded_bytes(const NarrowMap& map) const {
    const std::int64_t elements = (map.last_image - map.first_image) * map.image_stride;
    return round_up(elements * kernels_.format.element_bytes() + kNarrowSlack, 64);
  }

  std::int64_t kernel_bytes() const {
    std::int64_t bytes = kernels_.conv_scratch_bytes(channels_);
    if (op_.gating) {
      bytes = std::max(bytes, kernels_.conditional_scratch_bytes(channels_, op_.gating->decisions));
    }
    return round_up(bytes, 64);
  }

  // Per-channel values, or ones where there are none, times what one unit of the channel's sums stands for.
  Aligned<float> scaled(const FloatTensor& tensor, const NarrowTensor& weight) const {
    Aligned<float> values = per_channel(tensor, channels_, 1.0f);
    for (int c = 0; c < channels_; ++c) {
      values.data()[c] = static_cast<float>(values.data()[c] * (double{scale_} * weight.scale[c]));
    }
    return values;
  }

  // The base path's weights [out, inputs_per_block, kh, kw], picked from the full ones.
  std::vector<std::int16_t> base_weight(const std::vector<std::int16_t>& full) const {
    const std::int64_t taps = std::int64_t{shape_.kernel[0]} * shape_.kernel[1];
    const int outputs = channels_ / shape_.blocks;
    std::vector<std::int16_t> weight;
    weight.reserve(channels_ * shape_.inputs_per_block * taps);
    for (int c = 0; c < channels_; ++c) {
      const std::int32_t* inputs = shape_.inputs.data() + std::int64_t{c / outputs} * shape_.inputs_per_block;
      for (int i = 0; i < shape_.inputs_per_block; ++i) {
        const auto from = full.begin() + (std::int64_t{c} * shape_.in_channels + inputs[i]) * taps;
        weight.insert(weight.end(), from, from + taps);
      }
    }
    return weight;
  }

  int group_size() const { return channels_ / op_.gating->decisions; }
  std::int64_t images_at_a_time() const {
    return std::max<std::int64_t>(1, kChunkBytes / rounded_bytes(rounded_map({0, 1, 0, output_.height}, nullptr)));
  }

  // Splits the output over threads by images, or by rows where images are few.
  template <class F>
  void each_region(const RunContext& context, const Map& output, F body) const {
    if (context.images >= context.threads) {
      split(context.images, 1, context.threads, [&](int part, std::int64_t begin, std::int64_t end) {
        for (std::int64_t image = begin; image < end; image += images_at_a_time()) {
          body(part, Region{image, std::min(end, image + images_at_a_time()), 0, output.height});
        }
      });
    } else {
      split(output.height, 1, context.threads, [&](int part, std::int64_t begin, std::int64_t end) {
        for (std::int64_t image = 0; image < context.images; ++image) {
          body(part, Region{image, image + 1, static_cast<int>(begin), static_cast<int>(end)});
        }
      });
    }
  }

  std::int64_t open_decisions(const RunContext& context) const {
    std::int64_t open = 0;
    const std::int64_t count = context.images * pixels_ * (padded_ / kLanes);
    for (std::int64_t i = 0; i < count; ++i) open += std::popcount(context.masks[i]);
    return open / group_size();
  }

  const NarrowKernels& kernels_;
  const MapsKernels& maps_;
  const Op op_;
  const ConvShape shape_;
  const int channels_, padded_;
  const Shape input_, output_;
  const std::int64_t pixels_;
  const NarrowOrder order_;
  const Rounding rounding_;
  const float scale_;  // of what is rounded
  const Clamp clamp_;
  NarrowWeights base_, rest_;
  std::optional<Affine> plain_, score_, final_;
  std::optional<Aligned<float>> gain_, threshold_;
};

}  // namespace

std::unique_ptr<Step> make_narrow_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels) {
  return std::make_unique<NarrowConvStep>(plan, op, kernels);
}

}  // namespace headgate
