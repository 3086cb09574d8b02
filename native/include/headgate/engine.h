// The native engine: runs the plan files that `headgate.export` writes. Needs neither Python nor torch.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace headgate {

// The file cannot be read, or is not a plan of this version; the message names the file, the operator and what is wrong.
class PlanError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// What the engine was given does not fit the plan, or makes no sense.
class InputError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

struct MapShape {
  int channels, height, width;
};

// How a gated convolution completes its open outputs: one by one, with work in proportion to their number, or by a dense
// convolution, of which it keeps what is open.
enum class Path { sparse, masked };

// What a gated convolution took for a batch, by either path, and which one it takes from now on.
struct PathChoice {
  std::string name;
  double density;  // share of open decisions
  double sparse_ms, masked_ms;
  Path path;
};

// One operator's work since the engine was made or its statistics were reset.
struct LayerStats {
  std::string name, kind;
  std::int64_t images;
  double milliseconds;            // wall time
  std::int64_t dense_macs;        // what the dense layer would have cost
  std::int64_t executed_macs;     // what was computed; the same for what is not gated
  std::int64_t decisions, open;   // of gated convolutions, over all images
  std::optional<Path> path;       // of gated convolutions, now
};

// An engine may be used from several threads at once.
class Engine {
 public:
  // Maps the plan and packs its weights. Throws PlanError (also if it needs more memory than this process may use),
  // InputError, BackendError (headgate/isa.h), std::bad_alloc.
  explicit Engine(const std::string& path, int threads = 1);
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  MapShape input_shape() const;   // of one image
  MapShape output_shape() const;
  int threads() const;

  // From (images, channels, height, width) to (images, channels, height, width), both contiguous. The result of an
  // image is the same bit for bit whatever the batch around it and the number of threads. Where operators compute in
  // 8-bit integers, an image with a NaN has an output of NaN throughout. Throws InputError, std::bad_alloc.
  void run(const float* input, std::int64_t images, float* output) const;

  // The run-time dial: adds to every threshold, in standard deviations; positive saves more. Calls add up.
  // Throws InputError where `offset`, or the sum, is not finite.
  void shift_thresholds(float offset);

  // Runs a batch `repeats` times by each path, in turn, and has every gated convolution take the one with the smaller
  // median time. Needs memory for a second copy of their weights meanwhile; statistics are then as before. Throws
  // InputError, std::bad_alloc; then paths are as before.
  std::vector<PathChoice> tune(const float* input, std::int64_t images, int repeats);

  // The path of a gated convolution from the next run on; sparse at first. The paths add in different orders, so their
  // results differ by rounding, but in 8-bit integers. Throws InputError where no gated convolution has this name.
  void set_path(const std::string& name, Path path);

  std::vector<LayerStats> stats() const;
  void reset_stats();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace headgate
