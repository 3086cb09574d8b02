#include "engine/operators.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <string_view>
#include <utility>

#include "engine/attributes.h"
#include "engine/rounding.h"

namespace headgate {
namespace {

constexpr IntRange kChannels{1, 1 << 20}, kWindow{1, 1 << 12}, kPadding{0, 1 << 12};
constexpr std::size_t kMaxInputs = 100'000;
// Each operator has a list of its own, though they may share tensors: a small file must not ask for much memory.
constexpr std::size_t kMaxListed = std::size_t{1} << 24;
constexpr std::int64_t kAny = -1;  // in the shape that a tensor must have

// In the order of OpKind, Activation and Granularity.
constexpr std::string_view kKinds[] = {"conv", "gated_conv", "max_pool", "avg_pool", "adaptive_avg_pool",
                                       "add",  "mul",        "concat",   "affine",   "activation"};
constexpr std::string_view kActivations[] = {"none",        "relu", "relu6",   "hardswish",
                                             "hardsigmoid", "silu", "sigmoid", "tanh"};
constexpr std::string_view kGranularities[] = {"activation", "group", "channel"};

Count input_count(OpKind kind) {
  switch (kind) {
    case OpKind::conv:
    case OpKind::gated_conv: return {1, 2, "one or two integers"};
    case OpKind::add:
    case OpKind::mul: return {2, 2, "two integers"};
    case OpKind::concat: return {1, kMaxInputs, "a list of one or more integers"};
    default: return {1, 1, "a list of one integer"};
  }
}

std::string shown(const Shape& shape) {
  return "[" + std::to_string(shape.channels) + ", " + std::to_string(shape.height) + ", " +
         std::to_string(shape.width) + "]";
}

std::string shown(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (std::int64_t length : shape) {
    text += (text.empty() ? "" : ", ") + (length == kAny ? "any" : std::to_string(length));
  }
  return "[" + text + "]";
}

std::string shown(const std::array<int, 2>& size) { return std::to_string(size[0]) + "x" + std::to_string(size[1]); }

std::string shown(const Window& window) {
  return "kernel " + shown(window.kernel) + ", stride " + shown(window.stride) + ", padding " + shown(window.padding) +
         " and dilation " + shown(window.dilation);
}

std::array<int, 2> size_of(const Shape& shape) { return {shape.height, shape.width}; }

// How far the first window can move along an axis; negative if it does not fit.
int slack(const Window& window, int axis, int length) {
  return length + 2 * window.padding[axis] - window.dilation[axis] * (window.kernel[axis] - 1) - 1;
}

Activation activation(Attributes& attributes) {
  return static_cast<Activation>(attributes.one_of("activation", kActivations));
}

bool finite(float value) { return (std::bit_cast<std::uint32_t>(value) & 0x7F800000) != 0x7F800000; }

// The first number that is not finite, or `last`. Block by block without a branch, which compilers turn into vectors:
// this reads all weights of a plan.
const float* first_not_finite(const float* first, const float* last) {
  constexpr std::ptrdiff_t kBlock = 1024;
  for (; last - first >= kBlock; first += kBlock) {
    std::uint32_t wrong = 0;
    for (std::ptrdiff_t i = 0; i < kBlock; ++i) wrong |= finite(first[i]) ? 0 : 1;
    if (wrong != 0) break;
  }
  return std::find_if_not(first, last, finite);
}

}  // namespace

OperatorReader::OperatorReader(const Safetensors& file, const std::vector<Shape>& values, int input, std::string where)
    : file_(file), values_(values), where_(std::move(where)), writer_(values.size(), kUnwritten) {
  writer_[static_cast<std::size_t>(input)] = kPlanInput;
}

Op OperatorReader::read(const Json& json) {
  const std::string number = where_ + ": operator " + std::to_string(ops_++);
  Attributes attributes(json, number);
  Op op{};
  op.name = attributes.text("name");
  attributes.set_where(number + " (" + shown(op.name) + ")");
  const std::size_t kind = attributes.one_of("kind", kKinds);
  op.kind = static_cast<OpKind>(kind);
  attributes.set_where(number + " (" + std::string(kKinds[kind]) + " " + shown(op.name) + ")");

  data_flow(attributes, op);
  switch (op.kind) {
    case OpKind::conv:
      convolution(attributes, op);
      read_rounding(attributes, op);
      break;
    case OpKind::gated_conv:
      gating(attributes, op);
      read_rounding(attributes, op);
      break;
    case OpKind::max_pool:
    case OpKind::avg_pool: pool(attributes, op); break;
    case OpKind::adaptive_avg_pool: adaptive_pool(attributes, op); break;
    case OpKind::add:
      shaped_as_output(attributes, op, 0);
      shaped_as_output(attributes, op, 1);
      op.activation = activation(attributes);
      break;
    case OpKind::mul:
      shaped_as_output(attributes, op, 0);
      if (input(op, 1) != Shape{output(op).channels, 1, 1}) shaped_as_output(attributes, op, 1);
      break;
    case OpKind::concat: concat(attributes, op); break;
    case OpKind::affine:
      shaped_as_output(attributes, op, 0);
      op.weight = floats(attributes, "scale", {output(op).channels});
      op.bias = floats(attributes, "bias", {output(op).channels});
      op.activation = activation(attributes);
      break;
    case OpKind::activation:
      shaped_as_output(attributes, op, 0);
      op.activation = activation(attributes);
      break;
  }
  attributes.finish();
  return op;
}

void OperatorReader::finish() const {
  const auto unwritten = std::find(writer_.begin(), writer_.end(), kUnwritten);
  if (unwritten == writer_.end()) return;
  throw PlanError(where_ + ": value " + std::to_string(unwritten - writer_.begin()) + ": no operator writes it");
}

void OperatorReader::data_flow(Attributes& attributes, Op& op) {
  const IntRange ids{0, static_cast<int>(values_.size()) - 1};
  op.inputs = attributes.integers("inputs", input_count(op.kind), ids);
  op.output = attributes.integer("output", ids);
  for (int id : op.inputs) {
    if (writer_[static_cast<std::size_t>(id)] == kUnwritten) {
      attributes.fail("inputs must be written before they are read, got value " + std::to_string(id));
    }
  }
  int& writer = writer_[static_cast<std::size_t>(op.output)];
  if (writer != kUnwritten) {
    attributes.fail("output must be a value that nothing has written, got value " + std::to_string(op.output) + ", " +
                    (writer == kPlanInput ? "the plan's input" : "written by operator " + std::to_string(writer)));
  }
  writer = ops_ - 1;
}

void OperatorReader::convolution(Attributes& attributes, Op& op) {
  const int in = input(op).channels, out = output(op).channels;
  const int groups = attributes.integer("groups", kChannels);
  if (attributes.has("input_channels")) {
    op.groups = input_lists(attributes, "input_channels", in);
    if (op.groups.blocks != groups || out % groups != 0) {
      attributes.fail("groups must be the rows of input_channels and divide the " + std::to_string(out) +
                      " output channels, got " + std::to_string(groups));
    }
  } else {
    if (in % groups != 0 || out % groups != 0) {
      attributes.fail("groups must divide the " + std::to_string(in) + " input channels and the " +
                      std::to_string(out) + " output channels, got " + std::to_string(groups));
    }
    count_listed(attributes, "groups", static_cast<std::size_t>(in));
    op.groups = {groups, in / groups, std::vector<std::int32_t>(static_cast<std::size_t>(in))};
    std::iota(op.groups.channels.begin(), op.groups.channels.end(), 0);
  }
  op.weight = floats(attributes, "weight", {out, op.groups.per_block, kAny, kAny});
  op.bias = floats(attributes, "bias", {out});
  convolution_window(attributes, op);
}

void OperatorReader::gating(Attributes& attributes, Op& op) {
  const int in = input(op).channels, out = output(op).channels;
  op.weight = floats(attributes, "weight", {out, in, kAny, kAny});
  convolution_window(attributes, op);

  Gating& gating = op.gating.emplace();
  gating.base = input_lists(attributes, "base_inputs", in);
  if (out % gating.base.blocks != 0) {
    attributes.fail("base_inputs must have a number of rows that divides the " + std::to_string(out) +
                    " output channels, got " + std::to_string(gating.base.blocks));
  }
  gating.granularity = static_cast<Granularity>(attributes.one_of("granularity", kGranularities));
  gating.decisions = attributes.integer("decisions", {1, out});
  if (gating.granularity != Granularity::group && gating.decisions != out) {
    attributes.reject("decisions", "the number of output channels, " + std::to_string(out));
  }
  if (out % gating.decisions != 0) {
    attributes.reject("decisions", "a divisor of the number of output channels, " + std::to_string(out));
  }
  gating.two_sided = attributes.boolean("two_sided");
  if (gating.two_sided || attributes.has("center")) gating.center = attributes.number("center");
  gating.channel_bound = attributes.number("channel_bound");
  if (gating.channel_bound < 0 || gating.channel_bound >= 1) {
    attributes.reject("channel_bound", "at least 0 and, as a float32, below 1");
  }

  gating.threshold = floats(attributes, "threshold", {gating.decisions});
  if (gating.granularity != Granularity::activation) {
    gating.group_scale = floats(attributes, "group_scale", {gating.decisions});
  }
  gating.score_scale = floats(attributes, "score_scale", {out});
  gating.score_bias = floats(attributes, "score_bias", {out});
  gating.partial_scale = floats(attributes, "partial_scale", {out});
  gating.partial_bias = floats(attributes, "partial_bias", {out});
  gating.final_scale = floats(attributes, "final_scale", {out});
  gating.final_bias = floats(attributes, "final_bias", {out});
}

void OperatorReader::count_listed(Attributes& attributes, const std::string& name, std::size_t more) {
  listed_ += more;
  if (listed_ <= kMaxListed) return;
  attributes.fail(name + " and its like of all operators so far list " + std::to_string(listed_) +
                  " input channels, and at most " + std::to_string(kMaxListed) + " are accepted");
}

InputLists OperatorReader::input_lists(Attributes& attributes, std::string_view key, int in_channels) {
  const StoredTensor& tensor = stored(attributes, key, "I32", {kAny, kAny});
  const std::string name(key);
  if (tensor.size() == 0 || tensor.shape[0] > kChannels.last || tensor.shape[1] > in_channels) {
    attributes.fail(name + " must have shape [b, k] with b at least 1 and k in [1, " + std::to_string(in_channels) +
                    "], the input channels, got " + shown(tensor.shape));
  }
  count_listed(attributes, name, tensor.size());
  InputLists lists{static_cast<int>(tensor.shape[0]), static_cast<int>(tensor.shape[1]), {}};
  const auto* numbers = reinterpret_cast<const std::int32_t*>(tensor.bytes.data());
  lists.channels.assign(numbers, numbers + tensor.size());

  // Rows are counted through all operators, so that nothing has to be cleared in between.
  row_of_.resize(std::max(row_of_.size(), static_cast<std::size_t>(in_channels)));
  for (int row = 0; row < lists.blocks; ++row) {
    ++rows_;
    for (int i = 0; i < lists.per_block; ++i) {
      const int channel = lists.channels[static_cast<std::size_t>(row) * lists.per_block + i];
      if (channel < 0 || channel >= in_channels) {
        attributes.fail(name + " must be input channels, in [0, " + std::to_string(in_channels - 1) + "], got " +
                        std::to_string(channel) + " in row " + std::to_string(row));
      }
      if (std::exchange(row_of_[static_cast<std::size_t>(channel)], rows_) == rows_) {
        attributes.fail(name + " must not repeat a channel in a row, got " + std::to_string(channel) +
                        " twice in row " + std::to_string(row));
      }
    }
  }
  return lists;
}

void OperatorReader::convolution_window(Attributes& attributes, Op& op) const {
  for (std::size_t axis : {0, 1}) {
    const std::int64_t kernel = op.weight.shape[2 + axis];
    if (kernel < kWindow.first || kernel > kWindow.last) {
      attributes.fail("weight must have a kernel of 1 to 4096 in height and width, got shape " +
                      shown(op.weight.shape));
    }
    op.window.kernel[axis] = static_cast<int>(kernel);
  }
  op.window.stride = attributes.pair("stride", kWindow);
  op.window.padding = attributes.pair("padding", kPadding);
  op.window.dilation = attributes.pair("dilation", kWindow);
  op.activation = activation(attributes);

  const std::array<int, 2> in = size_of(input(op)), out = size_of(output(op));
  std::array<int, 2> made{};
  for (int axis : {0, 1}) {
    const int moves = slack(op.window, axis, in[axis]);
    made[axis] = moves < 0 ? 0 : moves / op.window.stride[axis] + 1;
  }
  if (out != made) {
    attributes.fail("output must be of the size that " + shown(op.window) + " make of " + shown(in) + ", " +
                    shown(made) + ", got " + shown(out));
  }
  if (op.inputs.size() > 1) shaped_as_output(attributes, op, 1);
}

void OperatorReader::pool(Attributes& attributes, Op& op) const {
  op.window.kernel = attributes.pair("kernel", kWindow);
  op.window.stride = attributes.pair("stride", kWindow);
  op.window.padding = attributes.pair("padding", kPadding);
  if (op.kind == OpKind::max_pool) op.window.dilation = attributes.pair("dilation", kWindow);
  if (op.kind == OpKind::avg_pool) op.count_include_pad = attributes.boolean("count_include_pad");
  if (input(op).channels != output(op).channels) {
    attributes.fail("output must have the input's " + std::to_string(input(op).channels) + " channels, got " +
                    std::to_string(output(op).channels));
  }

  const std::array<int, 2> in = size_of(input(op)), out = size_of(output(op));
  for (int axis : {0, 1}) {
    const int stride = op.window.stride[axis], padding = op.window.padding[axis];
    if (2 * padding > op.window.kernel[axis]) attributes.reject("padding", "at most half of the kernel");
    // A window that begins in the padding must not step over the map: every window has a pixel of it.
    if (padding > 0 && op.window.dilation[axis] > in[axis]) {
      attributes.reject("dilation", "at most the input's size, " + shown(in) + ", where there is padding");
    }
    // As with torch's ceil_mode: the last window may be cut, but begins before the padding behind the map.
    const int moves = slack(op.window, axis, in[axis]) + stride - 1;
    const int most = moves < 0 ? 0 : std::min(moves / stride, (in[axis] + padding - 1) / stride) + 1;
    if (out[axis] > most) {
      attributes.fail("output must have at most the " + std::to_string(most) + (axis == 0 ? " rows" : " columns") +
                      " that " + shown(op.window) + " make of " + shown(in) + ", got " + std::to_string(out[axis]));
    }
  }
}

void OperatorReader::adaptive_pool(Attributes& attributes, const Op& op) const {
  const Shape &in = input(op), &out = output(op);
  if (out.channels != in.channels) {
    attributes.fail("output must have the input's " + std::to_string(in.channels) + " channels, got " +
                    std::to_string(out.channels));
  }
}

void OperatorReader::concat(Attributes& attributes, const Op& op) const {
  const Shape& out = output(op);
  std::int64_t channels = 0;
  for (std::size_t i = 0; i < op.inputs.size(); ++i) {
    if (size_of(input(op, i)) != size_of(out)) {
      attributes.fail("inputs must have the output's size, " + shown(size_of(out)) + ", got " +
                      shown(size_of(input(op, i))) + " for input " + std::to_string(i));
    }
    channels += input(op, i).channels;
  }
  if (channels != out.channels) {
    attributes.fail("output must have the channels of all inputs, " + std::to_string(channels) + ", got " +
                    std::to_string(out.channels));
  }
}

void OperatorReader::shaped_as_output(Attributes& attributes, const Op& op, std::size_t i) const {
  if (input(op, i) == output(op)) return;
  const bool factor = op.kind == OpKind::mul && i == 1;
  attributes.fail("input " + std::to_string(i) + " must have the output's shape, " + shown(output(op)) +
                  (factor ? ", or its channels and size 1x1, got " : ", got ") + shown(input(op, i)));
}

const StoredTensor& OperatorReader::stored(Attributes& attributes, std::string_view key, std::string_view dtype,
                                           const std::vector<std::int64_t>& shape) const {
  const std::string& name = attributes.text(key);
  const auto found = file_.tensors.find(name);
  if (found == file_.tensors.end()) attributes.reject(key, "the name of a tensor in the file");
  const StoredTensor& tensor = found->second;
  const std::string what = std::string(key) + ": tensor " + shown(name) + " must ";
  if (tensor.dtype != dtype) {
    attributes.fail(what + "be " + std::string(dtype) + ", got " + shown(std::string_view(tensor.dtype)));
  }
  const auto fits = [](std::int64_t wanted, std::int64_t length) { return wanted == kAny || wanted == length; };
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end(), fits)) {
    attributes.fail(what + "have shape " + shown(shape) + ", got " + shown(tensor.shape));
  }
  return tensor;
}

FloatTensor OperatorReader::floats(Attributes& attributes, std::string_view key,
                                   const std::vector<std::int64_t>& shape) {
  const StoredTensor& tensor = stored(attributes, key, "F32", shape);
  const auto* numbers = reinterpret_cast<const float*>(tensor.bytes.data());
  if (finite_.insert(&tensor).second) {
    const float* wrong = first_not_finite(numbers, numbers + tensor.size());
    if (wrong != numbers + tensor.size()) {
      attributes.fail(std::string(key) + ": tensor " + shown(attributes.text(key)) + " must be finite, got " +
                      std::to_string(*wrong) + " at index " + std::to_string(wrong - numbers));
    }
  }
  return {numbers, tensor.shape};
}

}  // namespace headgate
