#include "headgate/engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <mutex>
#include <thread>

#include "engine/plan.h"
#include "engine/step.h"
#include "headgate/isa.h"
#include "headgate/parallel.h"

namespace headgate {
namespace {

// Larger batches run in pieces, so that memory does not grow with the batch.
constexpr std::int64_t kMaxImages = 32;

struct Counters {
  std::atomic<std::int64_t> images{0}, nanoseconds{0}, open{0};
};

// Buffers of one run.
struct Workspace {
  Workspace(const Layout& layout, const Needs& needs, std::int64_t images, int threads)
      : images(images),
        arena(layout.arena_size(images)),
        masks(needs.mask_words),
        scores(needs.scores),
        scratch(needs.scratch_bytes * threads) {}

  const std::int64_t images;
  Aligned<float> arena;
  Aligned<std::uint16_t> masks;
  Aligned<float> scores;
  Aligned<std::byte> scratch;
};

const char* kind_name(OpKind kind) {
  switch (kind) {
    case OpKind::conv: return "conv";
    case OpKind::gated_conv: return "gated_conv";
    case OpKind::max_pool: return "max_pool";
    case OpKind::avg_pool: return "avg_pool";
    case OpKind::adaptive_avg_pool: return "adaptive_avg_pool";
    case OpKind::add: return "add";
    case OpKind::mul: return "mul";
    case OpKind::concat: return "concat";
    case OpKind::affine: return "affine";
    case OpKind::activation: break;
  }
  return "activation";
}

MapShape public_shape(const Shape& shape) { return {shape.channels, shape.height, shape.width}; }

// Multiply-accumulates of one image: of the dense layer, whatever the gates decide, and for each open decision.
struct Macs {
  std::int64_t dense = 0, base = 0, per_decision = 0;
};

Macs macs_of(const Plan& plan, const Op& op) {
  if (op.kind != OpKind::conv && op.kind != OpKind::gated_conv) return {};
  const Shape &in = plan.values[op.inputs[0]], &out = plan.values[op.output];
  const std::int64_t taps = std::int64_t{op.window.kernel[0]} * op.window.kernel[1];
  const std::int64_t outputs = std::int64_t{out.channels} * out.height * out.width;
  if (!op.gating) {
    const std::int64_t macs = outputs * op.groups.per_block * taps;
    return {macs, macs, 0};
  }
  const Gating& gating = *op.gating;
  const std::int64_t pixels = std::int64_t{out.height} * out.width;
  const bool per_map = gating.granularity == Granularity::channel;
  const std::int64_t rest = in.channels - gating.base.per_block;
  // Averages cost additions, which headgate.count takes for MACs.
  const std::int64_t overhead = per_map ? outputs : (out.channels - gating.decisions) * pixels;
  return {outputs * in.channels * taps, outputs * gating.base.per_block * taps + overhead,
          rest * taps * (out.channels / gating.decisions) * (per_map ? pixels : 1)};
}

std::int64_t decisions_of(const Plan& plan, const Op& op) {
  if (!op.gating) return 0;
  const Shape& out = plan.values[op.output];
  const bool per_map = op.gating->granularity == Granularity::channel;
  return op.gating->decisions * (per_map ? 1 : std::int64_t{out.height} * out.width);
}

void clear_frame(const Map& map, std::int64_t image) {
  if (map.border == 0) return;
  float* first = map.data + image * map.image_stride - map.border * (map.row_stride + map.pixel_stride());
  const std::int64_t side = map.border * map.pixel_stride(), rows = map.border * map.row_stride;
  const std::int64_t inner = map.width * map.pixel_stride();
  std::fill_n(first, rows, 0.0f);
  for (int y = 0; y < map.height; ++y) {
    float* row = first + rows + y * map.row_stride;
    std::fill_n(row, side, 0.0f);
    std::fill_n(row + side + inner, side, 0.0f);
  }
  std::fill_n(first + rows + map.height * map.row_stride, rows, 0.0f);
}

}  // namespace

struct Engine::State {
  State(const std::string& path, int threads)
      : plan(load_plan(path)), kernels(kernel_set(active_isa())), layout(plan), threads(threads), counters(plan.ops.size()) {
    for (const Op& op : plan.ops) steps.push_back(make_step(plan, op, kernels));
  }

  std::unique_ptr<Workspace> take(std::int64_t images) {
    {
      std::lock_guard lock(mutex);
      for (auto& workspace : idle) {
        if (workspace->images != images) continue;
        std::unique_ptr<Workspace> taken = std::move(workspace);
        workspace = std::move(idle.back());
        idle.pop_back();
        return taken;
      }
      if (idle.size() > kMaxIdle) idle.clear();
    }
    Needs most;
    for (const auto& step : steps) {
      const Needs needs = step->needs(layout, images);
      most.mask_words = std::max(most.mask_words, needs.mask_words);
      most.scores = std::max(most.scores, needs.scores);
      most.scratch_bytes = std::max(most.scratch_bytes, needs.scratch_bytes);
    }
    return std::make_unique<Workspace>(layout, most, images, threads);
  }

  void give(std::unique_ptr<Workspace> workspace) {
    std::lock_guard lock(mutex);
    idle.push_back(std::move(workspace));
  }

  void run(const float* input, std::int64_t images, float* output) {
    std::unique_ptr<Workspace> workspace = take(images);
    const RunContext context{layout,
                             images,
                             threads,
                             static_cast<float>(shift.load(std::memory_order_relaxed)),
                             workspace->arena.data(),
                             workspace->masks.data(),
                             workspace->scores.data(),
                             workspace->scratch.data()};
    const Map in = context.map(plan.input), out = context.map(plan.output);
    clear_frames(context, plan.input);
    split(images * in.height, 1, threads,
          [&](int, std::int64_t begin, std::int64_t end) { kernels.maps.from_nchw(input, in, {begin, end}); });
    for (std::size_t i = 0; i < steps.size(); ++i) {
      const auto start = std::chrono::steady_clock::now();
      clear_frames(context, plan.ops[i].output);
      const std::int64_t open = steps[i]->run(context);
      const auto time = std::chrono::steady_clock::now() - start;
      counters[i].images.fetch_add(images, std::memory_order_relaxed);
      counters[i].nanoseconds.fetch_add(std::chrono::nanoseconds(time).count(), std::memory_order_relaxed);
      counters[i].open.fetch_add(open, std::memory_order_relaxed);
    }
    kernels.maps.to_nchw(out, output, {0, images * out.height});
    give(std::move(workspace));
  }

  // Frames are shared with values that lived there before.
  void clear_frames(const RunContext& context, int value) const {
    const Map map = context.map(value);
    for (std::int64_t image = 0; image < context.images; ++image) clear_frame(map, image);
  }

  static constexpr std::size_t kMaxIdle = 8;

  const Plan plan;
  const KernelSet kernels;
  const Layout layout;
  const int threads;
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<Counters> counters;
  std::atomic<double> shift{0.0};  // in double: sums of offsets undo one another
  std::mutex mutex;  // of `idle`
  std::vector<std::unique_ptr<Workspace>> idle;
};

Engine::Engine(const std::string& path, int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw InputError("threads must be in [1, " + std::to_string(kMaxThreads) + "], got " + std::to_string(threads));
  }
  state_ = std::make_unique<State>(path, threads);
}

Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

MapShape Engine::input_shape() const { return public_shape(state_->plan.values[state_->plan.input]); }
MapShape Engine::output_shape() const { return public_shape(state_->plan.values[state_->plan.output]); }
int Engine::threads() const { return state_->threads; }

void Engine::run(const float* input, std::int64_t images, float* output) const {
  if (images < 0) throw InputError("images must be ≥ 0, got " + std::to_string(images));
  const auto elements = [](const MapShape& s) { return std::int64_t{s.channels} * s.height * s.width; };
  const std::int64_t in = elements(input_shape()), out = elements(output_shape());
  for (std::int64_t first = 0; first < images; first += kMaxImages) {
    state_->run(input + first * in, std::min(kMaxImages, images - first), output + first * out);
  }
}

void Engine::shift_thresholds(float offset) {
  if (!std::isfinite(offset)) throw InputError("offset must be finite, got " + std::to_string(offset));
  double before = state_->shift.load(std::memory_order_relaxed);
  do {
    if (!std::isfinite(static_cast<float>(before + offset))) {
      throw InputError("offset must keep the sum of all offsets finite, got " + std::to_string(offset));
    }
  } while (!state_->shift.compare_exchange_weak(before, before + offset, std::memory_order_relaxed));
}

std::vector<LayerStats> Engine::stats() const {
  std::vector<LayerStats> all;
  for (std::size_t i = 0; i < state_->plan.ops.size(); ++i) {
    const Op& op = state_->plan.ops[i];
    const Counters& counters = state_->counters[i];
    const Macs macs = macs_of(state_->plan, op);
    const std::int64_t images = counters.images.load(std::memory_order_relaxed);
    const std::int64_t open = counters.open.load(std::memory_order_relaxed);
    all.push_back({.name = op.name,
                   .kind = kind_name(op.kind),
                   .images = images,
                   .milliseconds = 1e-6 * static_cast<double>(counters.nanoseconds.load(std::memory_order_relaxed)),
                   .dense_macs = images * macs.dense,
                   .executed_macs = images * macs.base + open * macs.per_decision,
                   .decisions = images * decisions_of(state_->plan, op),
                   .open = open});
  }
  return all;
}

void Engine::reset_stats() {
  for (Counters& counters : state_->counters) counters.images = 0, counters.nanoseconds = 0, counters.open = 0;
}

}  // namespace headgate
