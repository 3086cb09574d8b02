#include "engine/rounding.h"

#include <limits>
#include <string>
#include <string_view>

namespace headgate {
namespace {

// So many products of an unsigned and a signed byte do not overflow 32 bits.
constexpr std::int64_t kMaxInt8Products = 65536;

constexpr std::string_view kPrecisions[] = {"bfloat16"};

void input_range(Attributes& attributes, Op& op) {
  op.int8 = {attributes.number("input_scale"), attributes.integer("input_zero", {0, 255})};
  // Its inverse must be finite.
  if (!(op.int8->scale >= std::numeric_limits<float>::min())) {
    attributes.reject("input_scale", "a positive normal float32");
  }
  const std::int64_t products = op.weight.shape[1] * op.window.kernel[0] * op.window.kernel[1];
  if (products > kMaxInt8Products) {
    attributes.fail("input_scale is accepted where an output sums at most " + std::to_string(kMaxInt8Products) +
                    " products, got " + std::to_string(products));
  }
}

}  // namespace

void read_rounding(Attributes& attributes, Op& op) {
  // Names are kept by address until the operator is read to its end: literals only.
  const char* key = "input_scale";
  if (attributes.has("precision")) {
    key = "precision";
    attributes.one_of("precision", kPrecisions);
    op.bfloat16 = true;
  } else if (attributes.has("input_scale") || attributes.has("input_zero")) {
    input_range(attributes, op);
  } else {
    return;
  }
  if (op.gating && (op.gating->granularity == Granularity::channel || op.gating->channel_bound > 0)) {
    attributes.fail(std::string(key) + " is accepted where every pixel decides by itself: granularity activation or group, and "
                    "channel_bound 0");
  }
}

}  // namespace headgate
