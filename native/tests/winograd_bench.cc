// Times Winograd's convolution and the direct one on one core, in turn, medians:
// winograd_bench [isa or "" [part of a layer's name [seconds a layer]]]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <numeric>
#include <string>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "tests/framed.h"

namespace headgate {
namespace {

struct Layer {
  int in, out, size, images, blocks;
};

double now(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

std::string title(const Layer& l) {
  return std::to_string(l.in) + "-" + std::to_string(l.out) + " at " + std::to_string(l.size) + " b" +
         std::to_string(l.images) + (l.blocks > 1 ? " G" + std::to_string(l.blocks) : "") + ".";
}

void measure(const KernelSet& kernels, const Layer& l, double seconds) {
  ConvShape direct{l.in, l.out, {3, 3}, {1, 1}, {1, 1}, {1, 1}, l.blocks, l.in / l.blocks,
                   std::vector<std::int32_t>(l.in)};
  std::iota(direct.inputs.begin(), direct.inputs.end(), 0);
  std::mt19937 random(1);
  Framed input(l.images, l.in, l.size, l.size, 1, 0.0f), output(l.images, l.out, l.size, l.size, 1, 0.0f);
  input.fill(random);
  const std::vector<float> weight(std::size_t{9} * l.out * l.in / l.blocks, 0.01f), ones(padded_channels(l.out), 1.0f);
  const float infinity = std::numeric_limits<float>::infinity();
  ConvEpilogue epilogue{};
  epilogue.kind = Epilogue::plain, epilogue.scale = ones.data(), epilogue.bias = ones.data(), epilogue.high = infinity;
  const std::int64_t pixels = std::int64_t{1} * l.images * l.size * l.size;
  const int vectors = padded_channels(l.out) / kLanes;

  std::vector<std::function<void()>> candidates;
  Aligned direct_weights(kernels.conv.packed_size(direct), 0.0f);
  kernels.conv.pack(direct, weight.data(), direct_weights.data());
  candidates.push_back([&] {
    kernels.conv.run({&direct, direct_weights.data(), input.map(), output.map(), epilogue, 0, pixels, 0, vectors});
  });
  const WinogradShape shapes[] = {{direct, 2}, {direct, 4}};
  std::vector<std::unique_ptr<Aligned>> buffers;
  for (const WinogradShape& shape : shapes) {
    float* weights = buffers.emplace_back(std::make_unique<Aligned>(kernels.winograd.packed_size(shape), 0.0f))->data();
    float* scratch = buffers.emplace_back(std::make_unique<Aligned>(winograd_scratch_size(shape), 0.0f))->data();
    kernels.winograd.pack(shape, weight.data(), weights);
    const std::int64_t tiles = (l.size + shape.tile - 1) / shape.tile;
    const WinogradArgs args{&shape, weights, input.map(), output.map(), epilogue, 0, l.images * tiles * tiles, 0,
                            vectors, scratch};
    candidates.push_back([&kernels, args] { kernels.winograd.run(args); });
  }

  std::vector<std::vector<double>> times(candidates.size());
  for (const double start = now(CLOCK_MONOTONIC); times[0].size() < 5 || now(CLOCK_MONOTONIC) - start < seconds;) {
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const double before = now(CLOCK_THREAD_CPUTIME_ID);  // what other processes take does not count
      candidates[i]();
      times[i].push_back(now(CLOCK_THREAD_CPUTIME_ID) - before);
    }
  }
  std::printf("%-22s", title(l).c_str());
  double base = 0;
  for (std::vector<double>& of : times) {
    const auto middle = of.begin() + of.size() / 2;
    std::nth_element(of.begin(), middle, of.end());
    if (base == 0) base = *middle;
    const double flops = 2.0 * pixels * weight.size();
    std::printf("  %9.1f us %6.1f GFLOP/s %5.2fx", *middle * 1e6, 1e-9 * flops / *middle, base / *middle);
  }
  std::printf("\n");
}

}  // namespace
}  // namespace headgate

int main(int argc, char** argv) {
  using namespace headgate;
  const std::string isa = argc > 1 ? argv[1] : "", part = argc > 2 ? argv[2] : "";
  const double seconds = argc > 3 ? std::atof(argv[3]) : 0.2;
  const KernelSet kernels = kernel_set(choose_isa(isa, isas_in_build(), isas_in_cpu()));
  std::printf("%-22s  %-34s  %-34s  %-34s\n", "3x3, stride 1", "direct", "tiles of 2", "tiles of 4");
  std::vector<Layer> layers;
  for (int images : {1, 32}) {
    for (const auto& [channels, size] :
         std::vector<std::pair<int, int>>{{16, 32},  {32, 16},  {64, 8},   {64, 32},  {64, 56},  {64, 112}, {128, 16},
                                          {128, 28}, {256, 8},  {256, 14}, {512, 4},  {512, 7},  {512, 14}}) {
      for (int blocks : {1, 4, 8}) {
        if (blocks == 1 || channels % (blocks * 8) == 0) layers.push_back({channels, channels, size, images, blocks});
      }
    }
  }
  for (const Layer& layer : layers) {
    if (title(layer).find(part) != std::string::npos) measure(kernels, layer, seconds);
  }
}
