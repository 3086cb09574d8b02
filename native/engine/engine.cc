#include "headgate/engine.h"

#include <algorithm>
#include <atomic>
#include <bitset>
#include <chrono>
#include <cmath>
#include <limits>
#include <mutex>
#include <thread>
#include <utility>

#include "engine/frames.h"
#include "engine/memory.h"
#include "engine/plan.h"
#include "engine/safetensors.h"
#include "engine/step.h"
#include "headgate/isa.h"
#include "headgate/parallel.h"

namespace headgate {
namespace {

// Larger batches run in pieces, so that memory does not grow with the batch; in smaller ones where memory is short.
constexpr std::int64_t kMaxImages = 32;
// Of plans in 8-bit integers or bfloat16, for each thread: so fast that maps must come from the cache.
constexpr std::int64_t kMaxNarrowImages = 8;

// The masked path must take less than so much of the sparse path's time: what lies closer is noise.
constexpr double kAdvantage = 0.97;

bool has_int8(const Plan& plan) {
  return std::any_of(plan.ops.begin(), plan.ops.end(), [](const Op& op) { return op.int8.has_value(); });
}

std::int64_t images_at_once(const Plan& plan, int threads) {
  const bool narrow = std::any_of(plan.ops.begin(), plan.ops.end(), [](const Op& op) { return op.narrow(); });
  return narrow ? std::min(kMaxImages, kMaxNarrowImages * threads) : kMaxImages;
}

// A bit for each image of `size` values that has a NaN among them.
std::bitset<kMaxImages> images_with_nan(const float* values, std::int64_t images, std::int64_t size) {
  std::bitset<kMaxImages> found;
  for (std::int64_t image = 0; image < images; ++image, values += size) {
    int nan = 0;
    for (std::int64_t i = 0; i < size; ++i) nan |= values[i] != values[i] ? 1 : 0;
    found[static_cast<std::size_t>(image)] = nan != 0;
  }
  return found;
}

// Of one operator.
struct Counters {
  std::atomic<std::int64_t> images{0}, nanoseconds{0}, open{0};
};

// Buffers of one run, of at most `images` images.
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

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

}  // namespace

struct Engine::State {
  State(const std::string& path, int threads)
      : plan(load_plan(path)),
        int8(has_int8(plan)),
        kernels(kernel_set(active_isa())),
        layout(plan, held_values(plan, kernels)),
        threads(threads),
        shared(*plan.file),
        counters(plan.ops.size()) {
    const double limit = memory_limit(), weights = packed_bytes(plan);
    refuse_beyond(limit, weights, sizeof(float) * static_cast<double>(layout.arena_size(1)));
    make_steps();
    refuse_beyond(limit, weights, workspace_bytes(1));
    piece = images_at_once(plan, threads);
    while (piece > 1 && weights + workspace_bytes(piece) > limit) piece /= 2;
  }

  // Packs weights, the threads taking one operator after another. Weights that are packed are not kept twice.
  void make_steps() {
    steps.resize(plan.ops.size());
    plan.file->let_go();
    std::atomic<std::size_t> next{0};
    split(threads, 1, threads, [&](int, std::int64_t, std::int64_t) {
      for (std::size_t i; (i = next.fetch_add(1)) < steps.size();) {
        steps[i] = make_step(plan, plan.ops[i], kernels, shared);
        plan.file->let_go();
      }
    });
  }

  Needs needs(std::int64_t images) const {
    Needs most;
    for (const auto& step : steps) {
      const Needs needs = step->needs(layout, images);
      most.mask_words = std::max(most.mask_words, needs.mask_words);
      most.scores = std::max(most.scores, needs.scores);
      most.scratch_bytes = std::max(most.scratch_bytes, needs.scratch_bytes);
    }
    return most;
  }

  double workspace_bytes(std::int64_t images) const {
    const Needs most = needs(images);
    return sizeof(float) * (static_cast<double>(layout.arena_size(images)) + static_cast<double>(most.scores)) +
           sizeof(std::uint16_t) * static_cast<double>(most.mask_words) +
           static_cast<double>(most.scratch_bytes) * threads;
  }

  // The smallest idle workspace that is large enough; else a new one in place of an idle one, so that there are never
  // more than there were runs at once.
  std::unique_ptr<Workspace> take(std::int64_t images) {
    {
      std::lock_guard lock(mutex);
      const auto fits = std::find_if(idle.begin(), idle.end(), [&](const auto& w) { return w->images >= images; });
      const auto taken = fits != idle.end() || idle.empty() ? fits : std::prev(fits);
      if (taken != idle.end()) {
        std::unique_ptr<Workspace> workspace = std::move(*taken);
        idle.erase(taken);
        if (workspace->images >= images) return workspace;
      }
    }
    return std::make_unique<Workspace>(layout, needs(images), images, threads);
  }

  void give(std::unique_ptr<Workspace> workspace) {
    std::lock_guard lock(mutex);
    const auto larger = [](std::int64_t images, const auto& other) { return images < other->images; };
    idle.insert(std::upper_bound(idle.begin(), idle.end(), workspace->images, larger), std::move(workspace));
  }

  void run(const float* input, std::int64_t images, float* output, std::vector<Counters>& counters) {
    const Working working;
    std::unique_ptr<Workspace> workspace = take(images);
    const RunContext context{layout,
                             images,
                             threads,
                             static_cast<float>(shift.load(std::memory_order_relaxed)),
                             workspace->arena.data(),
                             workspace->masks.data(),
                             workspace->scores.data(),
                             workspace->scratch.data()};
    // Integers have no NaN: what float32 spreads from an image to its output would end on the way.
    std::bitset<kMaxImages> nan;
    if (int8) nan = images_with_nan(input, images, elements(plan.input));
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
    for (std::int64_t image = 0; nan.any() && image < images; ++image) {
      if (!nan[static_cast<std::size_t>(image)]) continue;
      const std::int64_t size = elements(plan.output);
      std::fill_n(output + image * size, size, std::numeric_limits<float>::quiet_NaN());
    }
    give(std::move(workspace));
  }

  // Frames are shared with values that lived there before.
  void clear_frames(const RunContext& context, int value) const {
    const Map map = context.map(value);
    for (std::int64_t image = 0; map.data != nullptr && image < context.images; ++image) clear_frame(map, image);
  }

  std::int64_t elements(int value) const {
    const Shape& shape = plan.values[value];
    return std::int64_t{shape.channels} * shape.height * shape.width;
  }

  // Runs a batch of any size.
  void run_in_pieces(const float* input, std::int64_t images, float* output, std::vector<Counters>& counters) {
    for (std::int64_t first = 0; first < images; first += piece) {
      run(input + first * elements(plan.input), std::min(piece, images - first), output + first * elements(plan.output),
          counters);
    }
  }

  // Null where the operator is no gated convolution.
  GatedStep* gated(std::size_t op) const { return dynamic_cast<GatedStep*>(steps[op].get()); }

  const Plan plan;
  const bool int8;  // some operators compute in 8-bit integers
  const KernelSet kernels;
  const Layout layout;
  const int threads;
  std::int64_t piece;
  SharedWeights shared;
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<Counters> counters;
  std::atomic<double> shift{0.0};  // in double: sums of offsets undo one another
  std::mutex mutex;  // of `idle`
  std::vector<std::unique_ptr<Workspace>> idle;  // the smallest first
};

Engine::Engine(const std::string& path, int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw InputError("threads must be in [1, " + std::to_string(kMaxThreads) + "], got " + std::to_string(threads));
  }
  try {
    state_ = std::make_unique<State>(path, threads);
  } catch (const PlanError& error) {
    const std::string what = error.what();  // layout and memory do not know the file's name
    throw PlanError(what.starts_with(path + ": ") ? what : path + ": " + what);
  }
}

Engine::~Engine() = default;
Engine::Engine(Engine&&) noexcept = default;
Engine& Engine::operator=(Engine&&) noexcept = default;

MapShape Engine::input_shape() const { return public_shape(state_->plan.values[state_->plan.input]); }
MapShape Engine::output_shape() const { return public_shape(state_->plan.values[state_->plan.output]); }
int Engine::threads() const { return state_->threads; }

void Engine::run(const float* input, std::int64_t images, float* output) const {
  if (images < 0) throw InputError("images must be ≥ 0, got " + std::to_string(images));
  state_->run_in_pieces(input, images, output, state_->counters);
}

std::vector<PathChoice> Engine::tune(const float* input, std::int64_t images, int repeats) {
  if (images < 1) throw InputError("images must be ≥ 1, got " + std::to_string(images));
  if (repeats < 1) throw InputError("repeats must be ≥ 1, got " + std::to_string(repeats));
  struct Timed {
    std::size_t op;
    GatedStep* step;
    Completion sparse, masked;
    Path path;
    double density;
    std::vector<double> sparse_ms, masked_ms;
  };
  std::vector<Timed> layers;
  for (std::size_t i = 0; i < state_->steps.size(); ++i) {
    GatedStep* const step = state_->gated(i);
    if (step == nullptr) continue;
    Completion sparse = step->completion(Path::sparse), masked = step->completion(Path::masked);
    layers.push_back({i, step, std::move(sparse), std::move(masked), step->path(), 0, {}, {}});
  }
  if (layers.empty()) return {};
  // Whatever happens, every layer ends on its path: the one before, until another is chosen.
  struct Settle {
    const std::vector<Timed>& layers;
    ~Settle() {
      for (const Timed& layer : layers) layer.step->use(layer.path == Path::sparse ? layer.sparse : layer.masked);
    }
  } settle{layers};
  const MapShape out = output_shape();
  std::vector<float> output(images * out.channels * out.height * out.width);
  for (int i = 0; i < 2 * repeats; ++i) {
    const Path path = i % 2 == 0 ? Path::sparse : Path::masked;
    for (const Timed& layer : layers) layer.step->use(path == Path::sparse ? layer.sparse : layer.masked);
    std::vector<Counters> warm(state_->steps.size()), timed(state_->steps.size());
    state_->run_in_pieces(input, images, output.data(), warm);
    state_->run_in_pieces(input, images, output.data(), timed);
    for (Timed& layer : layers) {
      const Counters& counters = timed[layer.op];
      const std::int64_t decisions = images * decisions_of(state_->plan, state_->plan.ops[layer.op]);
      layer.density = static_cast<double>(counters.open) / static_cast<double>(decisions);
      (path == Path::sparse ? layer.sparse_ms : layer.masked_ms).push_back(1e-6 * static_cast<double>(counters.nanoseconds));
    }
  }
  std::vector<PathChoice> choices;
  for (const Timed& layer : layers) {
    const double sparse = median(layer.sparse_ms), masked = median(layer.masked_ms);
    choices.push_back({state_->plan.ops[layer.op].name, layer.density, sparse, masked,
                       masked < kAdvantage * sparse ? Path::masked : Path::sparse});
  }
  for (std::size_t i = 0; i < layers.size(); ++i) layers[i].path = choices[i].path;
  return choices;
}

void Engine::set_path(const std::string& name, Path path) {
  for (std::size_t i = 0; i < state_->steps.size(); ++i) {
    if (state_->plan.ops[i].name != name) continue;
    GatedStep* const step = state_->gated(i);
    if (step == nullptr) break;
    return step->use(step->completion(path));
  }
  throw InputError("name must be that of a gated convolution, got " + name);
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
                   .open = open,
                   .path = state_->gated(i) ? std::optional(state_->gated(i)->path()) : std::nullopt});
  }
  return all;
}

void Engine::reset_stats() {
  for (Counters& counters : state_->counters) counters.images = 0, counters.nanoseconds = 0, counters.open = 0;
}

}  // namespace headgate
