// Convolutions in 8-bit integers, gated or not: docs/design/0003-int8.md. A few images, or rows, at a time are
// quantised and convolved while they are in the cache; the output is float32 as every value is.
#include <algorithm>
#include <bit>
#include <limits>
#include <optional>
#include <vector>

#include "engine/step.h"
#include "kernels/int8_conv/packing.h"

namespace headgate {
namespace {

constexpr std::int64_t kChunkPixels = 512;

std::int64_t round_up(std::int64_t n, std::int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Output rows of some images.
struct Region {
  std::int64_t first_image, last_image;
  int first_row, last_row;
};

class Int8ConvStep : public Step {
 public:
  Int8ConvStep(const Plan& plan, const Op& op, const KernelSet& kernels)
      : kernels_(kernels),
        op_(op),
        shape_(conv_shape(plan, op, op.gating ? op_.gating->base : op_.groups)),
        channels_(shape_.out_channels),
        padded_(padded_channels(channels_)),
        input_width_(plan.values[op.inputs[0]].width),
        pixels_(std::int64_t{plan.values[op.output].height} * plan.values[op.output].width),
        order_(int8_order(shape_, op.gating.has_value())),
        clamp_(clamp_of(op.activation)) {
    const std::int64_t per_output = op.weight.shape[1] * op.window.kernel[0] * op.window.kernel[1];
    const Int8Tensor weight = quantise_weights(op.weight.data, channels_, per_output);
    const Int8Format format = kernels.int8.quantise.format;
    if (!op.gating) {
      base_ = pack_int8(shape_, weight.values.data(), order_, op.int8->zero, format);
      plain_.emplace(Affine{scaled({}, weight), per_channel(op.bias, channels_)});
      return;
    }
    const Gating& gating = *op_.gating;
    base_ = pack_int8(shape_, base_weight(weight.values).data(), order_, op.int8->zero, format);
    rest_ = pack_int8_rest(shape_, weight.values.data(), gating.decisions, order_, op.int8->zero, format);
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
    needs.scratch_bytes = quantised_bytes(quantised_map(largest, nullptr)) + kernel_bytes();
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
    const std::int64_t scratch = needs(context.layout, context.images).scratch_bytes;
    each_region(context, output, [&](int part, const Region& region) {
      region_of(context, output, region, context.scratch + part * scratch);
    });
    if (!clamp_.complete) {
      split(context.images * output.height, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
        kernels_.maps.affine(output, nullptr, nullptr, output, function_of(op_.activation), {begin, end});
      });
    }
    return op_.gating ? open_decisions(context) : 0;
  }

 private:
  struct Affine {
    Aligned<float> scale, bias;
  };

  void region_of(const RunContext& context, const Map& output, const Region& region, std::byte* scratch) const {
    const Map input = context.map(op_.inputs[0]);
    Map residual{};
    if (op_.inputs.size() > 1) residual = context.map(op_.inputs[1]);
    const Map* residual_or_null = op_.inputs.size() > 1 ? &residual : nullptr;
    const Int8Map quantised = quantised_map(region, scratch);
    kernels_.int8.quantise.run({input, quantised, order_.identity ? nullptr : order_.channel_at.data(),
                                1.0f / op_.int8->scale, op_.int8->zero});
    scratch += quantised_bytes(quantised);
    // Adjacent within an image, and across images, of which a region has all rows.
    const std::int64_t begin = region.first_image * pixels_ + std::int64_t{region.first_row} * output.width;
    const std::int64_t end = (region.last_image - 1) * pixels_ + std::int64_t{region.last_row} * output.width;
    kernels_.int8.conv.run({&shape_, base_.view(), quantised, output, ending(context, residual_or_null), begin, end,
                            reinterpret_cast<std::int32_t*>(scratch)});
    if (!op_.gating) return;
    kernels_.int8.conditional.run({&shape_, rest_.view(), quantised, output, final_->scale.data(), final_->bias.data(),
                                   clamp_.low, clamp_.high, residual_or_null, context.masks, begin, end, scratch});
  }

  Int8Ending ending(const RunContext& context, const Map* residual) const {
    Int8Ending ending{};
    ConvEpilogue& common = ending.common;
    common.scale = plain_->scale.data(), common.bias = plain_->bias.data();
    common.low = clamp_.low, common.high = clamp_.high;
    common.residual = residual;
    ending.kind = Int8Epilogue::plain;
    if (op_.gating) {
      const bool group = op_.gating->granularity == Granularity::group;
      ending.kind = group ? Int8Epilogue::group : Int8Epilogue::gate;
      ending.gain = gain_->data(), ending.group_size = group_size();
      common.score_scale = score_->scale.data(), common.score_bias = score_->bias.data();
      common.two_sided = op_.gating->two_sided, common.center = op_.gating->center;
      common.threshold = context.scores;
      common.masks = context.masks;
    }
    return ending;
  }

  // The rows that a region's outputs read.
  Int8Map quantised_map(const Region& region, std::byte* data) const {
    const int reach = shape_.dilation[0] * (shape_.kernel[0] - 1) + 1;
    Int8Map map{};
    map.data = data;
    map.first_image = region.first_image, map.last_image = region.last_image;
    map.first_row = region.first_row * shape_.stride[0] - shape_.padding[0];
    map.last_row = (region.last_row - 1) * shape_.stride[0] - shape_.padding[0] + reach;
    map.border = shape_.padding[1];
    map.pixel_stride = order_.elements();
    map.row_stride = (std::int64_t{input_width_} + 2 * map.border) * map.pixel_stride;
    map.image_stride = (map.last_row - map.first_row) * map.row_stride;
    return map;
  }

  std::int64_t quantised_bytes(const Int8Map& map) const {
    const int element = kernels_.int8.quantise.format.element_bytes();
    return round_up((map.last_image - map.first_image) * map.image_stride * element + kInt8Slack, 64);
  }

  std::int64_t kernel_bytes() const {
    std::int64_t bytes = kernels_.int8.conv.scratch_words(channels_) * std::int64_t{sizeof(std::int32_t)};
    if (op_.gating) {
      bytes = std::max(bytes, kernels_.int8.conditional.scratch_bytes(channels_, op_.gating->decisions));
    }
    return round_up(bytes, 64);
  }

  // Per-channel values, or ones where there are none, times what one unit of the channel's integer sums stands for.
  Aligned<float> scaled(const FloatTensor& tensor, const Int8Tensor& weight) const {
    Aligned<float> values = per_channel(tensor, channels_, 1.0f);
    for (int c = 0; c < channels_; ++c) {
      values.data()[c] = static_cast<float>(values.data()[c] * (double{op_.int8->scale} * weight.scale[c]));
    }
    return values;
  }

  // The base path's weights [out, inputs_per_block, kh, kw], picked from the full ones.
  std::vector<std::int8_t> base_weight(const std::vector<std::int8_t>& full) const {
    const std::int64_t taps = std::int64_t{shape_.kernel[0]} * shape_.kernel[1];
    const int outputs = channels_ / shape_.blocks;
    std::vector<std::int8_t> weight;
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
  std::int64_t images_at_a_time() const { return std::max<std::int64_t>(1, kChunkPixels / pixels_); }

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

  const KernelSet kernels_;
  const Op op_;
  const ConvShape shape_;
  const int channels_, padded_, input_width_;
  const std::int64_t pixels_;
  const Int8Order order_;
  const Clamp clamp_;
  Int8Weights base_, rest_;
  std::optional<Affine> plain_, score_, final_;
  std::optional<Aligned<float>> gain_, threshold_;
};

}  // namespace

std::unique_ptr<Step> make_int8_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels) {
  return std::make_unique<Int8ConvStep>(plan, op, kernels);
}

}  // namespace headgate
