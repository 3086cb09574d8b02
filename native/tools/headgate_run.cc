// headgate-run: runs a plan on the images of a .npy file, without Python.
#include <getopt.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "headgate/engine.h"
#include "headgate/isa.h"
#include "headgate/parallel.h"
#include "tools/npy.h"

namespace headgate {
namespace {

constexpr char kHelp[] = R"(usage: headgate-run [options] model.hgplan input.npy

Runs a plan that headgate.export wrote on the images of a .npy file: float32, C order, (images, channels, height, width)
or (images, channels) where the plan takes vectors. Prints the largest values of each result, or writes all of them.

options:
  --threads N        threads of a run, 1 to 256 (default: the cores that this process may use)
  --output FILE.npy  write the results there, and print none
  --repeat N         run N times and print the median and the least time (default: 1)
  --shift OFFSET     add OFFSET standard deviations to every threshold: the run-time dial
  --paths PATHS      how gated convolutions complete open outputs: sparse, one by one; masked, by dense arithmetic; or
                     timed, whichever is faster for each on the input (default: sparse)
  --stats            print each operator's time, MACs and density, and the most memory that was resident
  --help             print this

exit status: 0 done; 1 the plan, the input or the output is at fault; 2 wrong usage
)";

constexpr int kShownClasses = 5, kMaxThreads = 256, kTimedRepeats = 9;

struct Options {
  std::string plan, input, output;
  int threads = 0, repeat = 1;
  float shift = 0.0f;
  std::string paths = "sparse";
  bool stats = false;
};

class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

template <class T>
T number(const char* option, const char* text, T least, T most) {
  T value{};
  const char* const last = text + std::strlen(text);
  const auto [end, error] = std::from_chars(*text == '+' ? text + 1 : text, last, value);
  if (error != std::errc() || end != last || !(value >= least && value <= most)) {
    throw UsageError(std::string(option) + " must be a number from " + std::to_string(least) + " to " +
                     std::to_string(most) + ", got " + text);
  }
  return value;
}

std::string one_of(const char* option, const std::string& text, const std::vector<std::string>& accepted) {
  if (std::find(accepted.begin(), accepted.end(), text) != accepted.end()) return text;
  std::string names;
  for (const std::string& name : accepted) names += (names.empty() ? "" : ", ") + name;
  throw UsageError(std::string(option) + " must be one of " + names + ", got " + text);
}

// Nothing where help was asked for.
std::optional<Options> parse_arguments(int argc, char** argv) {
  const option known[] = {{"threads", required_argument, nullptr, 't'}, {"output", required_argument, nullptr, 'o'},
                          {"repeat", required_argument, nullptr, 'r'},  {"shift", required_argument, nullptr, 's'},
                          {"paths", required_argument, nullptr, 'p'},   {"stats", no_argument, nullptr, 'v'},
                          {"help", no_argument, nullptr, 'h'},          {nullptr, 0, nullptr, 0}};
  Options options;
  options.threads = std::min(usable_cores(), kMaxThreads);
  for (int name; (name = ::getopt_long(argc, argv, "h", known, nullptr)) != -1;) {
    switch (name) {
      case 't': options.threads = number("--threads", optarg, 1, kMaxThreads); break;
      case 'o': options.output = optarg; break;
      case 'r': options.repeat = number("--repeat", optarg, 1, 1'000'000); break;
      case 's': options.shift = number("--shift", optarg, -1e6f, 1e6f); break;
      case 'p': options.paths = one_of("--paths", optarg, {"sparse", "masked", "timed"}); break;
      case 'v': options.stats = true; break;
      case 'h': return std::nullopt;
      default: throw UsageError("");  // getopt has said why
    }
  }
  if (argc - optind != 2) throw UsageError("expected a plan and an input, got " + std::to_string(argc - optind) + " files");
  options.plan = argv[optind], options.input = argv[optind + 1];
  return options;
}

std::int64_t elements(const MapShape& shape) { return std::int64_t{shape.channels} * shape.height * shape.width; }

bool vector(const MapShape& shape) { return shape.height == 1 && shape.width == 1; }

std::string shown(const std::vector<std::int64_t>& lengths) {
  std::string text;
  for (std::int64_t length : lengths) text += (text.empty() ? "" : ", ") + std::to_string(length);
  return "(" + text + ")";
}

std::vector<std::int64_t> array_shape(std::int64_t images, const MapShape& shape) {
  if (vector(shape)) return {images, shape.channels};
  return {images, shape.channels, shape.height, shape.width};
}

std::int64_t images_in(const NpyArray& input, const Engine& engine, const std::string& path) {
  const MapShape shape = engine.input_shape();
  const std::int64_t images = input.shape.empty() ? 0 : input.shape[0];
  const bool map = input.shape == std::vector<std::int64_t>{images, shape.channels, shape.height, shape.width};
  if (!map && input.shape != array_shape(images, shape)) {
    std::vector<std::int64_t> expected = array_shape(0, shape);
    expected.erase(expected.begin());
    throw NpyError(path + ": must have shape (images, " + shown(expected).substr(1) + ", got " + shown(input.shape));
  }
  return images;
}

void print_classes(const float* values, int count, std::int64_t image) {
  std::vector<int> order(static_cast<std::size_t>(count));
  std::iota(order.begin(), order.end(), 0);
  const auto shown = order.begin() + std::min(count, kShownClasses);
  // NaN last: a comparison must order them.
  const auto above = [&](int a, int b) { return values[a] > values[b] || (std::isnan(values[b]) && !std::isnan(values[a])); };
  std::partial_sort(order.begin(), shown, order.end(), above);
  std::printf("image %lld:", static_cast<long long>(image));
  for (auto i = order.begin(); i != shown; ++i) std::printf("  %d: %.6g", *i, static_cast<double>(values[*i]));
  std::printf("\n");
}

void print_map(const float* values, std::int64_t count, std::int64_t image) {
  const auto [least, most] = std::minmax_element(values, values + count);
  const double mean = std::accumulate(values, values + count, 0.0) / static_cast<double>(count);
  std::printf("image %lld:  least %.6g  mean %.6g  most %.6g\n", static_cast<long long>(image),
              static_cast<double>(*least), mean, static_cast<double>(*most));
}

void print_results(const NpyArray& output, const MapShape& shape) {
  const std::int64_t size = elements(shape);
  for (std::int64_t image = 0; image < output.shape[0]; ++image) {
    const float* values = output.values.data() + image * size;
    if (vector(shape)) {
      print_classes(values, shape.channels, image);
    } else {
      print_map(values, size, image);
    }
  }
}

void print_stats(const std::vector<LayerStats>& layers) {
  std::printf("%-17s %10s %14s %14s %8s %-6s  %s\n", "kind", "ms/image", "dense MACs", "executed MACs", "density", "path",
              "name");
  for (const LayerStats& layer : layers) {
    const double images = std::max(1.0, static_cast<double>(layer.images));
    std::printf("%-17s %10.4f %14.0f %14.0f ", layer.kind.c_str(), layer.milliseconds / images,
                static_cast<double>(layer.dense_macs) / images, static_cast<double>(layer.executed_macs) / images);
    if (layer.decisions > 0) {
      std::printf("%8.4f", static_cast<double>(layer.open) / static_cast<double>(layer.decisions));
    } else {
      std::printf("%8s", "");
    }
    const char* path = !layer.path ? "" : *layer.path == Path::sparse ? "sparse" : "masked";
    std::printf(" %-6s  %s\n", path, layer.name.c_str());
  }
}

// The most memory of this process that was resident so far, in bytes; nothing where the system does not say.
std::optional<double> peak_memory() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    double kibibytes = 0;
    if (word == "VmHWM:" && status >> kibibytes) return 1024 * kibibytes;
  }
  return std::nullopt;
}

void choose_paths(Engine& engine, const std::string& paths, const NpyArray& input, std::int64_t images) {
  if (paths == "timed") {
    if (images > 0) engine.tune(input.values.data(), images, kTimedRepeats);
    return;
  }
  for (const LayerStats& layer : engine.stats()) {
    if (layer.path) engine.set_path(layer.name, paths == "masked" ? Path::masked : Path::sparse);
  }
}

void run(const Options& options) {
  Engine engine(options.plan, options.threads);
  engine.shift_thresholds(options.shift);
  const NpyArray input = read_npy(options.input);
  const std::int64_t images = images_in(input, engine, options.input);
  choose_paths(engine, options.paths, input, images);
  const MapShape shape = engine.output_shape();
  NpyArray output{array_shape(images, shape), std::vector<float>(static_cast<std::size_t>(images * elements(shape)))};

  std::vector<double> milliseconds;
  for (int i = 0; i < options.repeat; ++i) {
    const auto start = std::chrono::steady_clock::now();
    engine.run(input.values.data(), images, output.values.data());
    milliseconds.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
  }
  if (options.output.empty()) {
    print_results(output, shape);
  } else {
    write_npy(options.output, output);
  }
  if (options.repeat > 1) {
    std::sort(milliseconds.begin(), milliseconds.end());
    std::printf("%d runs of %lld images, %d threads, %s: median %.3f ms, least %.3f ms\n", options.repeat,
                static_cast<long long>(images), engine.threads(), name(active_isa()),
                milliseconds[milliseconds.size() / 2], milliseconds[0]);
  }
  if (options.stats) {
    print_stats(engine.stats());
    if (const auto bytes = peak_memory()) std::printf("peak resident memory: %.1f MB\n", 1e-6 * *bytes);
  }
  if (std::fflush(stdout) != 0) throw std::runtime_error("cannot write to the standard output");
}

int main(int argc, char** argv) {
  try {
    const std::optional<Options> options = parse_arguments(argc, argv);
    if (options) {
      run(*options);
    } else {
      std::fputs(kHelp, stdout);
    }
    return 0;
  } catch (const UsageError& error) {
    if (*error.what() != '\0') std::fprintf(stderr, "headgate-run: %s\n", error.what());
    std::fputs("try: headgate-run --help\n", stderr);
    return 2;
  } catch (const std::bad_alloc&) {
    std::fputs("headgate-run: out of memory\n", stderr);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "headgate-run: %s\n", error.what());
  }
  return 1;
}

}  // namespace
}  // namespace headgate

int main(int argc, char** argv) { return headgate::main(argc, argv); }
