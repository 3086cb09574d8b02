// Runs a plan where Python does not: run_plan PLAN INPUT OUTPUT [THREADS]. Input and output are files of float32,
// (images, channels, height, width). Prints the instruction set and, per gated layer, its name and numbers of
// decisions and of open ones, separated by tabs.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <vector>

#include "headgate/engine.h"
#include "headgate/isa.h"

namespace {

std::vector<float> read(const char* path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw std::runtime_error(std::string("cannot open ") + path);
  std::vector<float> values(static_cast<std::size_t>(file.tellg()) / sizeof(float));
  file.seekg(0).read(reinterpret_cast<char*>(values.data()), static_cast<std::streamsize>(values.size() * sizeof(float)));
  return values;
}

std::int64_t size(const headgate::MapShape& s) { return std::int64_t{s.channels} * s.height * s.width; }

void run(const char* plan, const char* input_path, const char* output_path, int threads) {
  headgate::Engine engine(plan, threads);
  const std::vector<float> input = read(input_path);
  const std::int64_t images = static_cast<std::int64_t>(input.size()) / size(engine.input_shape());
  std::vector<float> output(static_cast<std::size_t>(images * size(engine.output_shape())));
  engine.run(input.data(), images, output.data());
  std::ofstream file(output_path, std::ios::binary);
  file.write(reinterpret_cast<const char*>(output.data()), static_cast<std::streamsize>(output.size() * sizeof(float)));
  if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + output_path);
  std::printf("%s\n", name(headgate::active_isa()));
  for (const headgate::LayerStats& layer : engine.stats()) {
    if (layer.decisions == 0) continue;
    std::printf("%s\t%lld\t%lld\n", layer.name.c_str(), static_cast<long long>(layer.decisions),
                static_cast<long long>(layer.open));
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4 || argc > 5) {
    std::fprintf(stderr, "usage: run_plan PLAN INPUT OUTPUT [THREADS]\n");
    return 2;
  }
  try {
    run(argv[1], argv[2], argv[3], argc == 5 ? std::atoi(argv[4]) : 1);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "run_plan: %s\n", error.what());
    return 1;
  }
}
