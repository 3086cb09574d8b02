// What the steps of convolutions in narrow numbers share, gated or not: the geometry, the numbers that they read, and how
// they go through their output, a few images, or rows, at a time, whose numbers are in the cache while they are convolved.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "engine/held.h"
#include "engine/step.h"
#include "kernels/narrow/packing.h"

namespace headgate {

class NarrowConv {
 public:
  // Output rows of some images: of several, all rows.
  struct Region {
    std::int64_t first_image, last_image;
    int first_row, last_row;
  };

  NarrowConv(const Plan& plan, const Op& op, const KernelSet& kernels);

  const Op& op() const { return op_; }
  const NarrowKernels& kernels() const { return kernels_; }
  const ConvShape& shape() const { return shape_; }
  const NarrowOrder& order() const { return order_; }
  const Clamp& clamp() const { return clamp_; }
  int zero() const { return rounding_.zero; }
  int padded() const { return padded_channels(shape_.out_channels); }
  std::int64_t pixels() const { return std::int64_t{output_.height} * output_.width; }

  // The operator's whole weights, rounded.
  NarrowTensor weights() const;

  // Per-channel values, or ones where there are none, times what one unit of the channel's sums stands for.
  Aligned<float> scaled(const FloatTensor& values, const NarrowTensor& weights) const;

  // Bytes of scratch that `input` takes for a region of so many images.
  std::int64_t input_bytes(const Layout& layout, std::int64_t images) const;

  // What a region reads, in numbers that its maker rounded, or that are rounded now, into `scratch`, which moves on
  // behind them.
  NarrowMap input(const RunContext& context, const Region& region, std::byte*& scratch) const;

  // Where the output goes rounded, its frame written, if it does.
  std::optional<RoundedOutput> rounded_output(const RunContext& context) const;

  // The residual, if there is one.
  std::optional<Map> residual(const RunContext& context) const;

  // The region's pixels, numbered through the batch: they are adjacent.
  std::int64_t begin(const Region& region) const {
    return region.first_image * pixels() + std::int64_t{region.first_row} * output_.width;
  }
  std::int64_t end(const Region& region) const {
    return (region.last_image - 1) * pixels() + std::int64_t{region.last_row} * output_.width;
  }

  // Calls body(part, region) for all of the output, which threads split by images, or by rows where images are few.
  template <class F>
  void each_region(const RunContext& context, F body) const {
    if (context.images >= context.threads) {
      split(context.images, 1, context.threads, [&](int part, std::int64_t begin, std::int64_t end) {
        for (std::int64_t image = begin; image < end; image += images_at_a_time()) {
          body(part, Region{image, std::min(end, image + images_at_a_time()), 0, output_.height});
        }
      });
    } else {
      split(output_.height, 1, context.threads, [&](int part, std::int64_t begin, std::int64_t end) {
        for (std::int64_t image = 0; image < context.images; ++image) {
          body(part, Region{image, image + 1, static_cast<int>(begin), static_cast<int>(end)});
        }
      });
    }
  }

  // An activation that is no clamp.
  void activate(const RunContext& context) const;

 private:
  bool reads_rounded(const Layout& layout) const;
  NarrowMap rounded_map(const Region& region, std::byte* data) const;
  std::int64_t rounded_bytes(const NarrowMap& map) const;
  std::int64_t images_at_a_time() const;

  const NarrowKernels& kernels_;
  const MapsKernels& maps_;
  const Op op_;
  const ConvShape shape_;
  const Shape input_, output_;
  const NarrowOrder order_;
  const Rounding rounding_;
  const Clamp clamp_;
};

}  // namespace headgate
