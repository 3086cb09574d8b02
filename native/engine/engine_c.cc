#include "headgate/engine_c.h"

#include <algorithm>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "headgate/engine.h"
#include "headgate/isa.h"

struct headgate_engine {
  headgate::Engine engine;
  std::vector<headgate::LayerStats> layers;  // as it was opened: for their names, which do not change
};

namespace headgate {
namespace {

thread_local std::string last_error;

headgate_status failed(headgate_status status, const char* what) noexcept {
  try {
    last_error = what;
  } catch (const std::bad_alloc&) {
    last_error.clear();
  }
  return status;
}

// Runs `body`; what it throws becomes a status and a text.
template <class F>
headgate_status guarded(F body) noexcept {
  try {
    body();
    return HEADGATE_OK;
  } catch (const PlanError& error) {
    return failed(HEADGATE_PLAN_ERROR, error.what());
  } catch (const BackendError& error) {
    return failed(HEADGATE_BACKEND_ERROR, error.what());
  } catch (const std::invalid_argument& error) {  // InputError, UnknownIsaError
    return failed(HEADGATE_INPUT_ERROR, error.what());
  } catch (const std::bad_alloc&) {
    return failed(HEADGATE_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(HEADGATE_INTERNAL_ERROR, error.what());
  } catch (...) {
    return failed(HEADGATE_INTERNAL_ERROR, "unknown error");
  }
}

void require(bool given, const char* what) {
  if (!given) throw InputError(std::string(what) + " must not be null");
}

void copy(const MapShape& shape, int sizes[3]) {
  sizes[0] = shape.channels, sizes[1] = shape.height, sizes[2] = shape.width;
}

// `names` has the same strings for as long as the engine lives.
headgate_layer_stats layer_stats(const LayerStats& names, const LayerStats& s) {
  const headgate_path path = !s.path                    ? HEADGATE_NOT_GATED
                             : *s.path == Path::sparse ? HEADGATE_SPARSE
                                                       : HEADGATE_MASKED;
  return {names.name.c_str(), names.kind.c_str(), s.images, s.milliseconds, s.dense_macs,
          s.executed_macs,    s.decisions,        s.open,   path};
}

}  // namespace
}  // namespace headgate

using headgate::guarded, headgate::require;

const char* headgate_last_error(void) { return headgate::last_error.c_str(); }

headgate_status headgate_engine_open(const char* path, int threads, headgate_engine** engine) {
  if (engine != nullptr) *engine = nullptr;
  return guarded([&] {
    require(path != nullptr, "path");
    require(engine != nullptr, "engine");
    headgate::Engine opened(path, threads);
    std::vector<headgate::LayerStats> layers = opened.stats();
    *engine = new headgate_engine{std::move(opened), std::move(layers)};
  });
}

void headgate_engine_close(headgate_engine* engine) { delete engine; }

headgate_status headgate_engine_shapes(const headgate_engine* engine, int input[3], int output[3]) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    require(input != nullptr, "input");
    require(output != nullptr, "output");
    headgate::copy(engine->engine.input_shape(), input);
    headgate::copy(engine->engine.output_shape(), output);
  });
}

headgate_status headgate_engine_run(const headgate_engine* engine, const float* input, int64_t images, float* output) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    require(input != nullptr || images == 0, "input");
    require(output != nullptr || images == 0, "output");
    engine->engine.run(input, images, output);
  });
}

headgate_status headgate_engine_shift_thresholds(headgate_engine* engine, float offset) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    engine->engine.shift_thresholds(offset);
  });
}

headgate_status headgate_engine_set_path(headgate_engine* engine, const char* name, headgate_path path) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    require(name != nullptr, "name");
    if (path != HEADGATE_SPARSE && path != HEADGATE_MASKED) {
      throw headgate::InputError("path must be HEADGATE_SPARSE or HEADGATE_MASKED, got " + std::to_string(path));
    }
    engine->engine.set_path(name, path == HEADGATE_MASKED ? headgate::Path::masked : headgate::Path::sparse);
  });
}

headgate_status headgate_engine_tune(headgate_engine* engine, const float* input, int64_t images, int repeats) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    require(input != nullptr, "input");
    engine->engine.tune(input, images, repeats);
  });
}

headgate_status headgate_engine_stats(const headgate_engine* engine, headgate_layer_stats* layers, int64_t capacity,
                                      int64_t* count) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    require(count != nullptr, "count");
    const std::vector<headgate::LayerStats> stats = engine->engine.stats();
    *count = static_cast<int64_t>(stats.size());
    for (int64_t i = 0; layers != nullptr && i < std::min(capacity, *count); ++i) {
      const auto at = static_cast<std::size_t>(i);
      layers[i] = headgate::layer_stats(engine->layers[at], stats[at]);
    }
  });
}

headgate_status headgate_engine_reset_stats(headgate_engine* engine) {
  return guarded([&] {
    require(engine != nullptr, "engine");
    engine->engine.reset_stats();
  });
}
