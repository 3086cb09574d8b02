#include "engine/narrow_conv.h"

#include "engine/frames.h"

namespace headgate {
namespace {

// Rounded at a time, if they are of several images: they stay in the second cache while they are convolved.
constexpr std::int64_t kChunkBytes = 1 << 20;

}  // namespace

NarrowConv::NarrowConv(const Plan& plan, const Op& op, const KernelSet& kernels)
    : kernels_(narrow_kernels(op, kernels)),
      maps_(kernels.maps),
      op_(op),
      shape_(narrow_shape(plan, op)),
      input_(plan.values[op.inputs[0]]),
      output_(plan.values[op.output]),
      order_(narrow_order(plan, op, kernels)),
      rounding_(rounding_of(op)),
      clamp_(clamp_of(op.activation)) {}

NarrowTensor NarrowConv::weights() const {
  const std::int64_t per_output = op_.weight.shape[1] * op_.window.kernel[0] * op_.window.kernel[1];
  return (op_.int8 ? int8_weights : bfloat16_weights)(op_.weight.data, shape_.out_channels, per_output);
}

Aligned<float> NarrowConv::scaled(const FloatTensor& values, const NarrowTensor& weights) const {
  const double input_scale = op_.int8 ? op_.int8->scale : 1.0;
  Aligned<float> scaled = per_channel(values, shape_.out_channels, 1.0f);
  for (int c = 0; c < shape_.out_channels; ++c) {
    scaled.data()[c] = static_cast<float>(scaled.data()[c] * (input_scale * weights.scale[c]));
  }
  return scaled;
}

std::int64_t NarrowConv::input_bytes(const Layout& layout, std::int64_t images) const {
  if (reads_rounded(layout)) return 0;
  return rounded_bytes(rounded_map({0, std::min(images, images_at_a_time()), 0, output_.height}, nullptr));
}

NarrowMap NarrowConv::input(const RunContext& context, const Region& region, std::byte*& scratch) const {
  if (reads_rounded(context.layout)) return context.rounded(op_.inputs[0]);
  const NarrowMap rounded = rounded_map(region, scratch);
  kernels_.round({context.map(op_.inputs[0]), rounded, order_.identity ? nullptr : order_.channel_at.data(), rounding_});
  scratch += rounded_bytes(rounded);
  return rounded;
}

std::optional<RoundedOutput> NarrowConv::rounded_output(const RunContext& context) const {
  const auto& held = context.layout.held(op_.output).rounded;
  if (!held) return std::nullopt;
  const RoundedOutput rounded{context.rounded(op_.output), held->rounding};
  fill_frames(rounded.map, held->element_bytes, kernels_.zero_byte(held->rounding));
  return rounded;
}

std::optional<Map> NarrowConv::residual(const RunContext& context) const {
  if (op_.inputs.size() < 2) return std::nullopt;
  return context.map(op_.inputs[1]);
}

void NarrowConv::activate(const RunContext& context) const {
  if (clamp_.complete) return;
  const Map output = context.map(op_.output);
  split(context.images * output.height, 1, context.threads, [&](int, std::int64_t begin, std::int64_t end) {
    maps_.affine(output, nullptr, nullptr, output, function_of(op_.activation), {begin, end});
  });
}

bool NarrowConv::reads_rounded(const Layout& layout) const {
  return order_.identity && layout.held(op_.inputs[0]).rounded;
}

// The rows that a region's outputs read.
NarrowMap NarrowConv::rounded_map(const Region& region, std::byte* data) const {
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

std::int64_t NarrowConv::rounded_bytes(const NarrowMap& map) const {
  const std::int64_t elements = (map.last_image - map.first_image) * map.image_stride;
  return (elements * kernels_.format.element_bytes() + kNarrowSlack + 63) / 64 * 64;
}

std::int64_t NarrowConv::images_at_a_time() const {
  return std::max<std::int64_t>(1, kChunkBytes / rounded_bytes(rounded_map({0, 1, 0, output_.height}, nullptr)));
}

}  // namespace headgate
