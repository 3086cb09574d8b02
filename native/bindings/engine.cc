// Engine for Python. headgate.engine checks arguments and words the errors.
#include "bindings/engine.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "engine/plan.h"
#include "headgate/engine.h"
#include "headgate/parallel.h"

namespace nb = nanobind;

namespace headgate {
namespace {

using Images = nb::ndarray<const float, nb::ndim<4>, nb::c_contig, nb::device::cpu>;
using Sizes = std::tuple<int, int, int>;
// name, kind, images, milliseconds, dense MACs, executed MACs, decisions, open decisions, path ("" where nothing is gated)
using StatsTuple = std::tuple<std::string, std::string, std::int64_t, double, std::int64_t, std::int64_t, std::int64_t,
                              std::int64_t, std::string>;
// name, density, milliseconds by the sparse path, and by the masked one, and the chosen path
using PathTuple = std::tuple<std::string, double, double, double, std::string>;

const char* path_name(Path path) { return path == Path::sparse ? "sparse" : "masked"; }

Sizes sizes(const MapShape& shape) { return {shape.channels, shape.height, shape.width}; }

void check_images(const Engine& engine, const Images& images) {
  const MapShape in = engine.input_shape();
  const bool fits = images.shape(1) == static_cast<std::size_t>(in.channels) &&
                    images.shape(2) == static_cast<std::size_t>(in.height) &&
                    images.shape(3) == static_cast<std::size_t>(in.width);
  if (!fits) throw InputError("headgate._native: the images do not fit the plan");
}

// (images, channels, height, width), or (images, channels) where the output is one pixel.
nb::object run(const Engine& engine, const Images& images) {
  check_images(engine, images);
  const MapShape out = engine.output_shape();
  const std::size_t n = images.shape(0);
  const std::size_t shape[4] = {n, static_cast<std::size_t>(out.channels), static_cast<std::size_t>(out.height),
                                static_cast<std::size_t>(out.width)};
  float* output = new float[n * shape[1] * shape[2] * shape[3]];
  nb::capsule owner(output, [](void* p) noexcept { delete[] static_cast<float*>(p); });
  {
    nb::gil_scoped_release release;
    engine.run(images.data(), static_cast<std::int64_t>(n), output);
  }
  const bool flat = out.height == 1 && out.width == 1;
  return nb::cast(nb::ndarray<nb::numpy, float>(output, flat ? 2 : 4, shape, owner));
}

std::vector<PathTuple> tune(Engine& engine, const Images& images, int repeats) {
  check_images(engine, images);
  std::vector<PathTuple> all;
  nb::gil_scoped_release release;
  for (const PathChoice& c : engine.tune(images.data(), static_cast<std::int64_t>(images.shape(0)), repeats)) {
    all.emplace_back(c.name, c.density, c.sparse_ms, c.masked_ms, path_name(c.path));
  }
  return all;
}

std::vector<StatsTuple> stats(const Engine& engine) {
  std::vector<StatsTuple> all;
  for (const LayerStats& s : engine.stats()) {
    all.emplace_back(s.name, s.kind, s.images, s.milliseconds, s.dense_macs, s.executed_macs, s.decisions, s.open,
                     s.path ? path_name(*s.path) : "");
  }
  return all;
}

}  // namespace

void bind_engine(nb::module_& m) {
  using namespace nb::literals;
  m.def("usable_cores", &usable_cores, "Cores that this process may keep busy: its CPU affinity, and its container's quota.");
  nb::exception<PlanError>(m, "PlanError", PyExc_OSError);
  nb::class_<Engine>(m, "Engine", "A loaded plan; use it through headgate.Engine.")
      .def(nb::init<const std::string&, int>(), "path"_a, "threads"_a, nb::call_guard<nb::gil_scoped_release>())
      .def_prop_ro("input_shape", [](const Engine& engine) { return sizes(engine.input_shape()); })
      .def_prop_ro("output_shape", [](const Engine& engine) { return sizes(engine.output_shape()); })
      .def_prop_ro("threads", &Engine::threads)
      .def("run", &run, "images"_a,
           nb::sig("def run(self, images: numpy.typing.NDArray[numpy.float32]) -> numpy.typing.NDArray[numpy.float32]"))
      .def("shift_thresholds", &Engine::shift_thresholds, "offset"_a)
      .def("tune", &tune, "images"_a, "repeats"_a,
           nb::sig("def tune(self, images: numpy.typing.NDArray[numpy.float32], repeats: int) -> "
                   "list[tuple[str, float, float, float, str]]"))
      .def("set_path", [](Engine& engine, const std::string& layer,
                          bool masked) { engine.set_path(layer, masked ? Path::masked : Path::sparse); },
           "layer"_a, "masked"_a)
      .def("stats", &stats)
      .def("reset_stats", &Engine::reset_stats);
}

}  // namespace headgate
