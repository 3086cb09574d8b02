// Gated convolutions: base path, decisions, conditional path.
#include <algorithm>
#include <bit>
#include <limits>
#include <memory>
#include <numeric>
#include <optional>
#include <utility>

#include "engine/step.h"
#include "engine/winograd.h"

namespace headgate {
namespace {

// Images are gated so many output pixels at a time: few enough to find the base path's sums in the cache again, enough
// to fill tiles and to use each weight often where maps are small.
constexpr std::int64_t kChunkPixels = 512;

// Part of an operator's output.
struct Region {
  std::int64_t first_image, last_image;
  int first_row, last_row, first_channel, last_channel;
};

class GatedConvStep : public GatedStep {
 public:
  GatedConvStep(const Plan& plan, const Op& op, const KernelSet& kernels, SharedWeights& weights)
      : kernels_(kernels),
        weights_(weights),
        conditional_(op.gating->granularity == Granularity::group ? kernels.conditional_group
                                                                   : kernels.conditional_activation),
        op_(op),
        gating_(*op_.gating),
        shape_(conv_shape(plan, op, gating_.base)),
        dense_shape_(headgate::dense_shape(plan, op)),
        base_winograd_(winograd_shape(plan, op, gating_.base)),
        dense_winograd_(winograd_shape(plan, op, every_input(plan, op))),
        channels_(shape_.out_channels),
        padded_(padded_channels(channels_)),
        pixels_(std::int64_t{plan.values[op.output].height} * plan.values[op.output].width),
        base_weights_(base_winograd_ ? weights.winograd_base(kernels.winograd, *base_winograd_, op.weight.data)
                                     : weights.base(kernels.conv, shape_, op.weight.data)),
        score_scale_(per_channel(gating_.score_scale, channels_)),
        score_bias_(per_channel(gating_.score_bias, channels_)),
        partial_scale_(per_channel(gating_.partial_scale, channels_)),
        partial_bias_(per_channel(gating_.partial_bias, channels_)),
        final_scale_(per_channel(gating_.final_scale, channels_)),
        final_bias_(per_channel(gating_.final_bias, channels_)),
        gain_(padded_),
        threshold_(padded_),
        clamp_(clamp_of(op.activation)) {
    for (int c = 0; c < channels_; ++c) threshold_.data()[c] = gating_.threshold.data[c / group_size()];
    const std::int64_t averaged = gating_.granularity == Granularity::channel ? pixels_ : group_size();
    for (int c = 0; gating_.granularity != Granularity::activation && c < channels_; ++c) {
      gain_.data()[c] = gating_.group_scale.data[c / group_size()] / static_cast<float>(averaged);
    }
    use(completion(Path::sparse));
  }

  Needs needs(const Layout& layout, std::int64_t images) const override {
    const Map input = layout.map(op_.inputs[0], nullptr, images), output = layout.map(op_.output, nullptr, images);
    Needs needs;
    needs.mask_words = images * pixels_ * words();
    // thresholds, and per part or image: scores
    needs.scores = padded_ * (1 + std::max<std::int64_t>(images, kMaxThreads));
    needs.scratch_bytes = conditional_.scratch_bytes(shape_, input, output);
    for (const auto& winograd : {base_winograd_, dense_winograd_}) {
      if (!winograd) continue;
      needs.scratch_bytes = std::max(needs.scratch_bytes, winograd_scratch_size(*winograd) * std::int64_t{sizeof(float)});
    }
    needs.scratch_bytes = (needs.scratch_bytes + 63) / 64 * 64;
    return needs;
  }

  Completion completion(Path path) const override {
    if (path == Path::masked) {
      return {path, dense_winograd_ ? weights_.winograd(kernels_.winograd, *dense_winograd_, op_.weight.data)
                                    : weights_.conv(kernels_.conv, dense_shape_, op_.weight.data)};
    }
    return {path, weights_.conditional(conditional_, shape_, gating_.decisions, op_.weight.data)};
  }

  std::int64_t run(const RunContext& context) const override {
    const Pass pass(*this, context);
    if (whole_images()) {
      each_region(context, [&](int part, const Region& region) { pass.base(part, region); });
      split(context.images, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
        for (std::int64_t image = begin; image < end; ++image) pass.decide_image(image);
      });
      each_region(context, [&](int part, const Region& region) { pass.conditional(part, region); });
    } else {
      each_region(context, [&](int part, const Region& region) {
        pass.base(part, region);
        pass.conditional(part, region);
      });
    }
    if (!clamp_.complete) {
      const Map output = context.map(op_.output);
      split(context.images * output.height, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
        kernels_.maps.affine(output, nullptr, nullptr, output, function_of(op_.activation), {begin, end});
      });
    }
    return open_decisions(context);
  }

 private:
  // One run of the step.
  class Pass {
   public:
    Pass(const GatedConvStep& step, const RunContext& context)
        : step_(step),
          context_(context),
          completion_(step.used()),
          input_(context.map(step.op_.inputs[0])),
          output_(context.map(step.op_.output)),
          thresholds_(context.scores),
          scores_(context.scores + step.padded_) {
      if (step.op_.inputs.size() > 1) residual_ = context.map(step.op_.inputs[1]);
      for (int c = 0; c < step.channels_; ++c) thresholds_[c] = step.threshold_.data()[c] + context.shift;
      // Padding never opens.
      std::fill(thresholds_ + step.channels_, thresholds_ + step.padded_, std::numeric_limits<float>::infinity());
    }

    void base(int part, const Region& region) const {
      const GatedConvStep& s = step_;
      const bool fused = s.decides_with_base();
      const ConvEpilogue epilogue{.kind = fused ? Epilogue::gate : Epilogue::raw,
                                  .scale = s.partial_scale_.data(),
                                  .bias = s.partial_bias_.data(),
                                  .score_scale = s.score_scale_.data(),
                                  .score_bias = s.score_bias_.data(),
                                  .threshold = thresholds_,
                                  .two_sided = s.gating_.two_sided,
                                  .center = s.gating_.center,
                                  .gain = s.gating_.granularity == Granularity::group ? s.gain_.data() : nullptr,
                                  .group_size = s.group_size(),
                                  .low = s.clamp_.low,
                                  .high = s.clamp_.high,
                                  .residual = residual(),
                                  .masks = context_.masks};
      convolve(part, region, s.shape_, s.base_winograd_, *s.base_weights_, epilogue);
      if (fused || s.gating_.granularity != Granularity::group) return;
      each_range(region, output_.height, output_.width, [&](std::int64_t begin, std::int64_t end) {
        s.kernels_.decide.group({.output = output_,
                                 .score = score(),
                                 .closed = closed(),
                                 .gain = s.gain_.data(),
                                 .threshold = thresholds_,
                                 .group_size = s.group_size(),
                                 .masks = context_.masks,
                                 .begin = begin,
                                 .end = end,
                                 .scratch = scores_ + part * s.padded_});
      });
    }

    // What needs the whole image: channel gates, and the channel-wise bound.
    void decide_image(std::int64_t image) const {
      const GatedConvStep& s = step_;
      std::vector<std::uint16_t> kept(s.words());
      const auto keep = [&](int c) { kept[c / kLanes] |= static_cast<std::uint16_t>(1u << (c % kLanes)); };
      std::uint16_t* masks = context_.masks + image * s.pixels_ * s.words();
      if (s.gating_.granularity == Granularity::channel) {
        float* sums = scores_ + image * s.padded_;
        std::fill_n(sums, s.padded_, 0.0f);
        s.kernels_.decide.sum_scores(output_, score(), image * s.pixels_, (image + 1) * s.pixels_, sums);
        for (int c = 0; c < s.channels_; ++c) {
          if (sums[c] * s.gain_.data()[c] > thresholds_[c]) keep(c);
        }
        std::fill_n(masks, s.pixels_ * s.words(), std::uint16_t{0xffff});
      } else {
        std::vector<int> open(s.padded_);
        for (std::int64_t i = 0; i < s.pixels_ * s.words(); ++i) {
          for (unsigned left = masks[i]; left != 0; left &= left - 1) {
            ++open[i % s.words() * kLanes + std::countr_zero(left)];
          }
        }
        for (int c = 0; c < s.channels_; ++c) {
          if (static_cast<float>(open[c]) / static_cast<float>(s.pixels_) > s.gating_.channel_bound) keep(c);
        }
      }
      s.kernels_.decide.close(output_, closed(), image, kept.data(), context_.masks);
    }

    void conditional(int part, const Region& region) const {
      const GatedConvStep& s = step_;
      if (completion_.path == Path::masked) return masked(part, region);
      s.conditional_.run({.shape = &s.shape_,
                          .weights = std::get<PackedWeights>(completion_.weights)->data(),
                          .input = input_,
                          .output = output_,
                          .scale = s.final_scale_.data(),
                          .bias = s.final_bias_.data(),
                          .low = s.clamp_.low,
                          .high = s.clamp_.high,
                          .residual = residual(),
                          .masks = context_.masks,
                          .decisions = s.gating_.decisions,
                          .begin = region.first_image,
                          .end = region.last_image,
                          .first_row = region.first_row,
                          .last_row = region.last_row,
                          .first_channel = region.first_channel,
                          .last_channel = region.last_channel,
                          .scratch = scratch(part)});
    }

   private:
    void masked(int part, const Region& region) const {
      const GatedConvStep& s = step_;
      const ConvEpilogue epilogue{.kind = Epilogue::masked,
                                  .scale = s.final_scale_.data(),
                                  .bias = s.final_bias_.data(),
                                  .low = s.clamp_.low,
                                  .high = s.clamp_.high,
                                  .residual = residual(),
                                  .masks = context_.masks};
      convolve(part, region, s.dense_shape_, s.dense_winograd_, *std::get<PackedWeights>(completion_.weights), epilogue);
    }

    // Direct, or by Winograd's algorithm where there is a shape for it: then the region's rows begin with a row of tiles.
    void convolve(int part, Region region, const ConvShape& direct, const std::optional<WinogradShape>& winograd,
                  const Aligned<float>& weights, const ConvEpilogue& epilogue) const {
      const int first_vector = region.first_channel / kLanes, last_vector = (region.last_channel + kLanes - 1) / kLanes;
      if (!winograd) {
        each_range(region, output_.height, output_.width, [&](std::int64_t begin, std::int64_t end) {
          step_.kernels_.conv.run({&direct, weights.data(), input_, output_, epilogue, begin, end, first_vector,
                                   last_vector});
        });
        return;
      }
      const auto tiles = [&](int pixels) { return (pixels + winograd->tile - 1) / winograd->tile; };
      region.first_row = tiles(region.first_row), region.last_row = tiles(region.last_row);
      each_range(region, tiles(output_.height), tiles(output_.width), [&](std::int64_t begin, std::int64_t end) {
        step_.kernels_.winograd.run({&*winograd, weights.data(), input_, output_, epilogue, begin, end, first_vector,
                                     last_vector, reinterpret_cast<float*>(scratch(part))});
      });
    }

    std::byte* scratch(int part) const {
      return context_.scratch + part * step_.needs(context_.layout, context_.images).scratch_bytes;
    }

    // Ranges of a region's pixels, or tiles, of which an image has `height` × `width`: its rows are adjacent within an
    // image, and across images if it has all of them.
    template <class F>
    static void each_range(const Region& region, int height, int width, F body) {
      const std::int64_t of_image = std::int64_t{height} * width;
      if (region.first_row == 0 && region.last_row == height) {
        return body(region.first_image * of_image, region.last_image * of_image);
      }
      for (std::int64_t image = region.first_image; image < region.last_image; ++image) {
        body(image * of_image + region.first_row * width, image * of_image + region.last_row * width);
      }
    }

    const Map* residual() const { return step_.op_.inputs.size() > 1 ? &residual_ : nullptr; }
    Score score() const {
      return {step_.score_scale_.data(), step_.score_bias_.data(), step_.gating_.two_sided, step_.gating_.center};
    }
    Closed closed() const {
      return {step_.partial_scale_.data(), step_.partial_bias_.data(), step_.clamp_.low, step_.clamp_.high, residual()};
    }

    const GatedConvStep& step_;
    const RunContext& context_;
    const Completion completion_;
    const Map input_, output_;
    Map residual_{};
    float *thresholds_, *scores_;
  };

  int words() const { return padded_ / kLanes; }
  int group_size() const { return channels_ / gating_.decisions; }
  // Each decision needs sums of one vector alone.
  bool decides_with_base() const {
    return gating_.granularity != Granularity::channel && kernels_.conv.lanes % group_size() == 0;
  }
  // `decide` takes all channels of a pixel at once, when all of their sums are there.
  bool decides_across_channels() const { return gating_.granularity == Granularity::group && !decides_with_base(); }
  bool whole_images() const { return gating_.granularity == Granularity::channel || gating_.channel_bound > 0; }

  // Rows that make a row of tiles of either path.
  int rows_together() const {
    return std::max(base_winograd_ ? base_winograd_->tile : 1, dense_winograd_ ? dense_winograd_->tile : 1);
  }

  // Splits the output over threads by images, by rows where images are few, by channels where rows are few too.
  template <class F>
  void each_region(const RunContext& context, F body) const {
    const Map output = context.map(op_.output);
    const Region all{0, context.images, 0, output.height, 0, channels_};
    const int unit = std::lcm(kLanes, group_size());
    if (context.images >= context.threads) {
      const std::int64_t chunk = std::max<std::int64_t>(1, kChunkPixels / pixels_);
      split(context.images, 1, context.threads, [&](int part, std::int64_t begin, std::int64_t end) {
        Region region = all;
        for (std::int64_t image = begin; image < end; image += chunk) {
          region.first_image = image, region.last_image = std::min(end, image + chunk);
          body(part, region);
        }
      });
    } else if (output.height >= 4 * context.threads || channels_ < 2 * unit || decides_across_channels()) {
      split(output.height, rows_together(), context.threads, [&](int part, std::int64_t begin, std::int64_t end) {
        Region region = all;
        region.first_row = static_cast<int>(begin), region.last_row = static_cast<int>(end);
        body(part, region);
      });
    } else {
      split(channels_, unit, context.threads, [&](int part, std::int64_t begin, std::int64_t end) {
        Region region = all;
        region.first_channel = static_cast<int>(begin), region.last_channel = static_cast<int>(end);
        body(part, region);
      });
    }
  }

  std::int64_t open_decisions(const RunContext& context) const {
    const std::int64_t open = kernels_.decide.count(context.masks, context.images * pixels_ * words());
    return open / (gating_.granularity == Granularity::channel ? pixels_ : group_size());
  }

  const KernelSet kernels_;
  SharedWeights& weights_;
  const ConditionalKernels& conditional_;
  const Op op_;
  const Gating& gating_;
  const ConvShape shape_, dense_shape_;
  const std::optional<WinogradShape> base_winograd_, dense_winograd_;
  const int channels_, padded_;
  const std::int64_t pixels_;
  const PackedWeights base_weights_;
  const Aligned<float> score_scale_, score_bias_, partial_scale_, partial_bias_, final_scale_, final_bias_;
  const Aligned<float> gain_, threshold_;
  const Clamp clamp_;
};

}  // namespace

std::unique_ptr<GatedStep> make_gated_conv_step(const Plan& plan, const Op& op, const KernelSet& kernels,
                                                SharedWeights& weights) {
  return std::make_unique<GatedConvStep>(plan, op, kernels, weights);
}

}  // namespace headgate
