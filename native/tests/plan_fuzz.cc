// Mutates valid plans and parses them: each must give a plan or a PlanError. Small plans are also run, on each
// instruction set and by either path in turn. To be built with the address and undefined-behaviour sanitizers. Input i
// depends on i alone, so `plan_fuzz 1 <i>` repeats one.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "engine/layout.h"
#include "engine/memory.h"
#include "engine/plan.h"
#include "engine/safetensors.h"
#include "tests/isas.h"
#include "tests/plan_file.h"

// A sanitizer's abort is how a huge allocation shows: the seeds have a few KiB.
extern "C" const char* __asan_default_options() { return "max_allocation_size_mb=64"; }

namespace headgate {
namespace {

constexpr int kDefaultInputs = 120'000;
constexpr std::int64_t kImages = 3;
constexpr unsigned kSecondsPerInput = 60;  // a hang, even on a busy machine under sanitizers

const char* const kNumbers[] = {"0",     "-1",       "1",          "2",          "3",     "16",    "1.5",       "-0",
                                "4096",  "4097",     "1048576",    "1048577",    "65536", "1e999", "-1e308",    "NaN",
                                "2147483647", "2147483648", "-2147483649", "4294967296", "9223372036854775807",
                                "9223372036854775808", "-9223372036854775808", "-9223372036854775809",
                                "18446744073709551616", "Infinity", "0x10", "1e-400", "1E+2", "00", "null", "\"4\""};
const char* const kTokens[] = {"{",    "}",     "[",       "]",     ",",        ":",     "\"",     "\\",  "\\u0000",
                               "true", "false", "\\ud800", "\xC3",  "\xED\xA0", "\xF4",  "[[[[[[", "{\"a\":", "\\u12",
                               "\"version\": 1,", "\"groups\": 1,", "\"inputs\": [0],", "\"output\": 1,", "null,"};
const char* const kNames[] = {"none", "conv",  "gated_conv",  "max_pool", "avg_pool", "adaptive_avg_pool",
                              "add",  "group", "mul",         "concat",   "affine",   "activation",
                              "relu", "six",   "groups.base", "F16",      "I32",      "channel"};

class Mutator {
 public:
  Mutator(const std::vector<PlanFile>& seeds, std::uint64_t seed) : seeds_(seeds), random_(seed) {}

  std::string file() {
    PlanFile file = seed();
    const std::size_t target = below(8), times = 1 + below(3);
    if (target < 5) {
      mutate(file.plan, times, seed().plan);
      return file.bytes();
    }
    if (target == 5) file.data[below(file.data.size())] = byte();
    std::string text = target < 7 ? file.header() : file.bytes();
    mutate(text, times, target < 7 ? seed().header() : seed().bytes());
    return target < 7 ? file.with_header(text) : text;
  }

 private:
  std::size_t below(std::size_t bound) { return bound == 0 ? 0 : random_() % bound; }
  char byte() { return static_cast<char>(random_()); }
  const PlanFile& seed() { return seeds_[below(seeds_.size())]; }

  template <std::size_t n>
  const char* pick(const char* const (&choices)[n]) {
    return choices[below(n)];
  }

  void mutate(std::string& text, std::size_t times, const std::string& other) {
    while (times-- > 0) {
      const std::size_t at = below(text.size()), length = below(std::min<std::size_t>(text.size() - at, 64));
      switch (below(10)) {
        case 0: text[at] ^= static_cast<char>(1 << below(8)); break;
        case 1: text.insert(at, 1, byte()); break;
        case 2: text.erase(at, length); break;
        case 3: text.insert(below(text.size()), text.substr(at, length)); break;
        case 4: text.replace(at, length, other, below(other.size()), below(200)); break;  // splice
        case 5: text.insert(at, pick(kTokens)); break;
        case 6: replace_word(text, at); break;
        case 7: nest(text, at); break;
        default: replace_number(text, at); break;
      }
      if (below(40) == 0) text.resize(below(text.size()));
      if (text.empty()) return;
    }
  }

  void replace_number(std::string& text, std::size_t from) {
    constexpr const char* kDigits = "0123456789";
    const std::size_t at = text.find_first_of(kDigits, from);
    if (at == text.npos) return;
    const std::size_t length = std::min(text.find_first_not_of(kDigits, at), text.size()) - at;
    text.replace(at, length, below(2) == 0 ? std::to_string(below(12)) : pick(kNumbers));
  }

  void replace_word(std::string& text, std::size_t from) {
    const std::size_t at = text.find(": \"", from);
    if (at == text.npos) return;
    const std::size_t length = std::min(text.find('"', at + 3), text.size()) - (at + 3);
    text.replace(at + 3, length, pick(kNames));
  }

  void nest(std::string& text, std::size_t at) {
    const std::size_t depth = below(4) == 0 ? 20'000 : below(64);
    std::string open;
    for (std::size_t i = 0; i < depth; ++i) open += i % 2 == 0 ? "[" : "{\"a\":";
    text.insert(text.find_first_of("[{", at) == text.npos ? at : text.find_first_of("[{", at), open);
  }

  const std::vector<PlanFile>& seeds_;
  std::mt19937_64 random_;
};

// Reads all that the plan refers to, so that the sanitizers see it; what the engine relies on is checked once more.
bool sound(const Plan& plan) {
  double sum = 0;
  const auto touch = [&](const FloatTensor& tensor) {
    std::int64_t count = tensor.data == nullptr ? 0 : 1;
    for (std::int64_t length : tensor.shape) count *= length;
    for (std::int64_t i = 0; i < count; ++i) sum += tensor.data[i] * 1e-30;
  };
  for (const Op& op : plan.ops) {
    const Shape& in = plan.values.at(static_cast<std::size_t>(op.inputs.at(0)));
    if (static_cast<std::size_t>(op.output) >= plan.values.size()) return false;
    touch(op.weight), touch(op.bias);
    if (!op.gating) continue;
    const Gating& gating = *op.gating;
    for (const FloatTensor* tensor : {&gating.threshold, &gating.group_scale, &gating.score_scale, &gating.score_bias,
                                      &gating.partial_scale, &gating.partial_bias, &gating.final_scale,
                                      &gating.final_bias}) {
      touch(*tensor);
    }
    for (std::int32_t channel : gating.base.channels) {
      if (channel < 0 || channel >= in.channels) return false;
    }
  }
  return std::isfinite(sum);
}

std::int64_t elements(const Shape& s) { return std::int64_t{s.channels} * s.height * s.width; }

// Whether a run takes little memory and time, at most: few bytes can describe a huge one.
bool small(const Plan& plan) {
  constexpr double kMaxBytes = 16e6, kMaxSteps = 4e6;
  double steps = 0;
  for (const Op& op : plan.ops) {
    const double taps = double{1} * op.window.kernel[0] * op.window.kernel[1];
    steps += static_cast<double>(elements(plan.values[op.output])) * taps * plan.values[op.inputs[0]].channels;
    if (op.kind == OpKind::adaptive_avg_pool) steps += static_cast<double>(elements(plan.values[op.inputs[0]]));
  }
  const Layout layout(plan, held_values(plan, kernel_set(active_isa())));
  return steps < kMaxSteps && packed_bytes(plan) < kMaxBytes &&
         sizeof(float) * static_cast<double>(layout.arena_size(kImages)) < kMaxBytes;
}

// A file in memory, for an engine to open.
class MemoryFile {
 public:
  explicit MemoryFile(const std::string& bytes) : descriptor_(::memfd_create("plan", MFD_CLOEXEC)) {
    const bool whole = ::write(descriptor_, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
    if (!whole) throw std::runtime_error("cannot write a file in memory");
  }
  ~MemoryFile() { ::close(descriptor_); }
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  const int descriptor_;
};

// The buffers are exactly as large as they must be, so that the sanitizers see a byte beyond.
void run(const Plan& plan, const std::string& bytes, Path path) {
  const MemoryFile file(bytes);
  Engine engine(file.path(), 2);
  for (const LayerStats& layer : engine.stats()) {
    if (layer.path) engine.set_path(layer.name, path);
  }
  std::vector<float> input(static_cast<std::size_t>(kImages * elements(plan.values[plan.input])));
  for (std::size_t i = 0; i < input.size(); ++i) input[i] = std::sin(static_cast<float>(i));
  std::vector<float> output(static_cast<std::size_t>(kImages * elements(plan.values[plan.output])));
  engine.run(input.data(), kImages, output.data());
}

int fuzz(std::uint64_t count, std::uint64_t first) {
  const std::vector<PlanFile> seeds{convolutions(), gated_convolutions(), float_gates(), tiled_convolutions(),
                                    everything_else()};
  std::uint64_t accepted = 0, ran = 0;
  double slowest = 0;
  for (std::uint64_t i = first; i < first + count; ++i) {
    const std::string bytes = Mutator(seeds, i).file();
    const auto file = MappedFile::copy_of(bytes);
    const auto begin = std::chrono::steady_clock::now();
    ::alarm(kSecondsPerInput);
    try {
      const Plan plan = parse_plan(file, "fuzz");
      if (!sound(plan)) throw std::runtime_error("accepted a plan that is not sound");
      ++accepted;
      if (small(plan)) {
        set_isa(name(isas()[i % isas().size()]));
        run(plan, bytes, i / isas().size() % 2 == 0 ? Path::sparse : Path::masked);
        ++ran;
      }
    } catch (const PlanError&) {
    } catch (const std::exception& error) {
      std::fprintf(stderr, "input %llu: %s\n", static_cast<unsigned long long>(i), error.what());
      return 1;
    }
    slowest = std::max(slowest, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
    if ((i + 1) % 10'000 == 0) std::fprintf(stderr, "%llu\n", static_cast<unsigned long long>(i + 1));
  }
  std::printf("%llu inputs, %llu of them accepted, %llu of those run; the slowest took %.0f ms\n",
              static_cast<unsigned long long>(count), static_cast<unsigned long long>(accepted),
              static_cast<unsigned long long>(ran), slowest * 1e3);
  // Mutations that are always noticed, or never, test nothing.
  return count < 1000 || (accepted > count / 100 && accepted < count / 2 && ran > accepted / 2) ? 0 : 1;
}

}  // namespace
}  // namespace headgate

int main(int argc, char** argv) {
  const auto argument = [&](int i, std::uint64_t otherwise) {
    return argc > i ? std::strtoull(argv[i], nullptr, 10) : otherwise;
  };
  return headgate::fuzz(argument(1, headgate::kDefaultInputs), argument(2, 0));
}
