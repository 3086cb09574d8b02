// headgate._native: the operators on raw pointers. The callers in headgate.ops own shapes, dtypes and lifetimes; here
// only what would corrupt memory silently is checked again.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/engine.h"
#include "headgate/gated_norm.h"
#include "headgate/isa.h"
#include "headgate/norm_act.h"

namespace nb = nanobind;

namespace headgate {
namespace {

using Address = std::uintptr_t;
// Address of the first element, or 0 for none, and the distance between pixels in elements.
using View = std::tuple<Address, std::int64_t>;
// weight, bias, running_mean, running_var, training, momentum, eps, mean (out), rstd (out)
using NormTuple = std::tuple<Address, Address, Address, Address, bool, float, float, Address, Address>;
// weight, bias, mean, rstd, training, grad_weight (out), grad_bias (out)
using NormGradTuple = std::tuple<Address, Address, Address, Address, bool, Address, Address>;

void require(bool fits, const char* what) {
  if (!fits) throw std::invalid_argument(std::string("headgate._native: ") + what);
}

template <class T>
T* pointer(Address address, const char* name) {
  require(address != 0, name);
  return reinterpret_cast<T*>(address);
}

// Null stays null; else pixels must not overlap.
template <class T>
T* pixels(const View& view, int channels) {
  require(std::get<0>(view) == 0 || std::get<1>(view) >= channels, "pixels overlap: stride below channels");
  return reinterpret_cast<T*>(std::get<0>(view));
}

template <class T>
T* required_pixels(const View& view, int channels, const char* name) {
  require(std::get<0>(view) != 0, name);
  return pixels<T>(view, channels);
}

Norm norm(const NormTuple& t) {
  const auto& [weight, bias, running_mean, running_var, training, momentum, eps, mean, rstd] = t;
  return {pointer<const float>(weight, "weight is null"), pointer<const float>(bias, "bias is null"),
          pointer<float>(running_mean, "running_mean is null"), pointer<float>(running_var, "running_var is null"),
          training, momentum, eps, pointer<float>(mean, "mean is null"), pointer<float>(rstd, "rstd is null")};
}

NormGrad norm_grad(const NormGradTuple& t) {
  const auto& [weight, bias, mean, rstd, training, grad_weight, grad_bias] = t;
  return {pointer<const float>(weight, "weight is null"), pointer<const float>(bias, "bias is null"),
          pointer<const float>(mean, "mean is null"), pointer<const float>(rstd, "rstd is null"), training,
          pointer<float>(grad_weight, "grad_weight is null"), pointer<float>(grad_bias, "grad_bias is null")};
}

// bfloat16, images, pixels per image, channels, groups, grouped, slope, relu
using GatedShapeTuple = std::tuple<bool, std::int64_t, std::int64_t, int, int, bool, float, bool>;

GatedNormShape gated_shape(const GatedShapeTuple& t) {
  const auto& [bfloat16, images, per_image, channels, groups, grouped, slope, relu] = t;
  require(images > 0 && per_image > 0 && channels > 0, "the sums are empty");
  require(groups > 0 && channels % groups == 0, "groups must divide channels");
  require(grouped || groups == channels, "activation granularity needs a threshold per channel");
  return {bfloat16 ? Dtype::bfloat16 : Dtype::float32, images, per_image, channels, groups, grouped, slope, relu};
}

void gated_forward(const GatedShapeTuple& shape_tuple, const View& final_sum, const View& partial_sum,
                   const View& residual, const View& output, const NormTuple& final_norm,
                   const NormTuple& partial_norm, Address threshold, Address score_var, Address scale, Address counts,
                   int threads) {
  GatedNormForward op{};
  op.shape = gated_shape(shape_tuple);
  const int channels = op.shape.channels;
  op.final_sum = required_pixels<const void>(final_sum, channels, "final_sum is null");
  op.partial_sum = required_pixels<const void>(partial_sum, channels, "partial_sum is null");
  op.residual = pixels<const void>(residual, channels);
  op.output = required_pixels<void>(output, channels, "output is null");
  op.final_stride = std::get<1>(final_sum);
  op.partial_stride = std::get<1>(partial_sum);
  op.residual_stride = std::get<1>(residual);
  op.output_stride = std::get<1>(output);
  op.final_norm = norm(final_norm);
  op.partial_norm = norm(partial_norm);
  op.threshold = pointer<const float>(threshold, "threshold is null");
  require(!op.shape.grouped || (score_var != 0 && scale != 0), "group granularity needs score_var and scale");
  op.score_var = reinterpret_cast<float*>(score_var);
  op.scale = reinterpret_cast<float*>(scale);
  op.counts = pointer<float>(counts, "counts is null");
  gated_norm_forward(op, threads);
}

void gated_backward(const GatedShapeTuple& shape_tuple, const View& final_sum, const View& partial_sum,
                    const View& output, const View& grad_output, Address grad_counts, const View& grad_residual,
                    const View& grad_final, const View& grad_partial, const NormGradTuple& final_norm,
                    const NormGradTuple& partial_norm, Address threshold, Address scale, Address grad_threshold,
                    int threads) {
  GatedNormBackward op{};
  op.shape = gated_shape(shape_tuple);
  const int channels = op.shape.channels;
  op.final_sum = required_pixels<const void>(final_sum, channels, "final_sum is null");
  op.partial_sum = required_pixels<const void>(partial_sum, channels, "partial_sum is null");
  op.output = pixels<const void>(output, channels);
  op.grad_output = required_pixels<const void>(grad_output, channels, "grad_output is null");
  op.grad_counts = reinterpret_cast<const float*>(grad_counts);
  op.grad_residual = pixels<void>(grad_residual, channels);
  require((op.output == nullptr) == (op.grad_residual == nullptr), "output and grad_residual go together");
  require(op.output == nullptr || op.shape.relu, "output is for the ReLU's gradient");
  op.grad_final = pixels<void>(grad_final, channels);
  op.grad_partial = pixels<void>(grad_partial, channels);
  require((op.grad_final == nullptr) == (op.grad_partial == nullptr), "grad_final and grad_partial go together");
  op.final_stride = std::get<1>(final_sum);
  op.partial_stride = std::get<1>(partial_sum);
  op.output_stride = std::get<1>(output);
  op.grad_output_stride = std::get<1>(grad_output);
  op.grad_residual_stride = std::get<1>(grad_residual);
  op.grad_final_stride = std::get<1>(grad_final);
  op.grad_partial_stride = std::get<1>(grad_partial);
  op.final_norm = norm_grad(final_norm);
  op.partial_norm = norm_grad(partial_norm);
  op.threshold = pointer<const float>(threshold, "threshold is null");
  require(!op.shape.grouped || scale != 0, "group granularity needs scale");
  op.scale = reinterpret_cast<const float*>(scale);
  op.grad_threshold = pointer<float>(grad_threshold, "grad_threshold is null");
  gated_norm_backward(op, threads);
}

// bfloat16, rows, channels, relu
using NormShapeTuple = std::tuple<bool, std::int64_t, int, bool>;

void act_forward(const NormShapeTuple& shape, const View& input, const View& residual, const View& output,
                 const NormTuple& norm_tuple, int threads) {
  const auto& [bfloat16, rows, channels, relu] = shape;
  require(rows > 0 && channels > 0, "the input is empty");
  NormActForward op{};
  op.dtype = bfloat16 ? Dtype::bfloat16 : Dtype::float32;
  op.rows = rows;
  op.channels = channels;
  op.relu = relu;
  op.input = required_pixels<const void>(input, channels, "input is null");
  op.residual = pixels<const void>(residual, channels);
  op.output = required_pixels<void>(output, channels, "output is null");
  op.input_stride = std::get<1>(input);
  op.residual_stride = std::get<1>(residual);
  op.output_stride = std::get<1>(output);
  op.norm = norm(norm_tuple);
  norm_act_forward(op, threads);
}

void act_backward(const NormShapeTuple& shape, const View& input, const View& output, const View& grad_output,
                  const View& grad_residual, const View& grad_input, const NormGradTuple& norm_tuple, int threads) {
  const auto& [bfloat16, rows, channels, relu] = shape;
  require(rows > 0 && channels > 0, "the input is empty");
  NormActBackward op{};
  op.dtype = bfloat16 ? Dtype::bfloat16 : Dtype::float32;
  op.rows = rows;
  op.channels = channels;
  op.relu = relu;
  op.input = required_pixels<const void>(input, channels, "input is null");
  op.output = pixels<const void>(output, channels);
  op.grad_output = required_pixels<const void>(grad_output, channels, "grad_output is null");
  op.grad_residual = pixels<void>(grad_residual, channels);
  require((op.output == nullptr) == (op.grad_residual == nullptr), "output and grad_residual go together");
  require(op.output == nullptr || relu, "output is for the ReLU's gradient");
  op.grad_input = pixels<void>(grad_input, channels);
  op.input_stride = std::get<1>(input);
  op.output_stride = std::get<1>(output);
  op.grad_output_stride = std::get<1>(grad_output);
  op.grad_residual_stride = std::get<1>(grad_residual);
  op.grad_input_stride = std::get<1>(grad_input);
  op.norm = norm_grad(norm_tuple);
  norm_act_backward(op, threads);
}

std::vector<std::string> usable_isas() {
  const std::vector<Isa> in_build = isas_in_build(), in_cpu = isas_in_cpu();
  std::vector<std::string> names;
  for (Isa isa : in_cpu) {
    if (std::find(in_build.begin(), in_build.end(), isa) != in_build.end()) names.emplace_back(name(isa));
  }
  return names;
}

std::vector<Isa> isas_named(const std::vector<std::string>& names) {
  std::vector<Isa> isas;
  for (Isa isa : kIsas) {
    if (std::find(names.begin(), names.end(), name(isa)) != names.end()) isas.push_back(isa);
  }
  return isas;
}

std::string choose(const std::string& wanted, const std::vector<std::string>& in_build,
                   const std::vector<std::string>& in_cpu) {
  return name(choose_isa(wanted, isas_named(in_build), isas_named(in_cpu)));
}

}  // namespace
}  // namespace headgate

NB_MODULE(_native, m) {
  using namespace nb::literals;
  using namespace headgate;
  using NoGil = nb::call_guard<nb::gil_scoped_release>;
  m.doc() = "Native operators on raw pointers, behind headgate.ops, and the engine, behind headgate.engine.";
  nb::exception<BackendError>(m, "BackendError", PyExc_OSError);

  m.def("usable_isas", &usable_isas, "Instruction sets that this build contains and this CPU runs, the best one first.");
  m.def("choose_isa", &choose, "wanted"_a, "in_build"_a, "in_cpu"_a,
        "The named instruction set, or the best one for '', of those that a build and a CPU have.");
  m.def("active_isa", [] { return std::string(name(active_isa())); }, "The instruction set in use.");
  m.def("set_isa", &set_isa, "isa"_a, "Use the named instruction set from now on; '' means the best one.");

  m.def("gated_norm_forward", &gated_forward, "shape"_a, "final_sum"_a, "partial_sum"_a, "residual"_a, "output"_a,
        "final_norm"_a, "partial_norm"_a, "threshold"_a, "score_var"_a, "scale"_a, "counts"_a, "threads"_a, NoGil());
  m.def("gated_norm_backward", &gated_backward, "shape"_a, "final_sum"_a, "partial_sum"_a, "output"_a, "grad_output"_a,
        "grad_counts"_a, "grad_residual"_a, "grad_final"_a, "grad_partial"_a, "final_norm"_a, "partial_norm"_a,
        "threshold"_a, "scale"_a, "grad_threshold"_a, "threads"_a, NoGil());
  m.def("norm_act_forward", &act_forward, "shape"_a, "input"_a, "residual"_a, "output"_a, "norm"_a, "threads"_a,
        NoGil());
  m.def("norm_act_backward", &act_backward, "shape"_a, "input"_a, "output"_a, "grad_output"_a, "grad_residual"_a,
        "grad_input"_a, "norm"_a, "threads"_a, NoGil());

  bind_engine(m);
}
