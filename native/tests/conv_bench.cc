// Times the convolution kernels on one core, medians: conv_bench [isa or "" [part of a layer's name [seconds a layer]]]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "kernels/conv/conv.h"
#include "tests/framed.h"

namespace headgate {
namespace {

struct Layer {
  int in, out, size, blocks;
  bool shuffled;
  int images, kernel = 3, stride = 1;
};

double seconds_of(clockid_t clock) {
  timespec t;
  clock_gettime(clock, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

std::string title(const Layer& l) {
  const std::string kernel = std::to_string(l.kernel), stride = l.stride == 2 ? "/2 " : " ";
  return kernel + "x" + kernel + stride + std::to_string(l.in) + "-" + std::to_string(l.out) + " at " +
         std::to_string(l.size) + " G" + std::to_string(l.blocks) + (l.shuffled ? "s" : "") + " b" +
         std::to_string(l.images) + ".";
}

void measure(const ConvKernels& kernels, const Layer& l, Epilogue kind, double seconds) {
  const int pad = l.kernel / 2, size = (l.size - 1) / l.stride + 1;
  ConvShape shape{l.in, l.out, {l.kernel, l.kernel}, {l.stride, l.stride}, {pad, pad}, {1, 1}, l.blocks,
                  l.in / l.blocks, {}};
  for (int i = 0; i < l.in; ++i) {
    const int block = i / shape.inputs_per_block, input = i % shape.inputs_per_block;
    shape.inputs.push_back(l.shuffled ? input * l.blocks + block : i);
  }
  std::mt19937 random(1);
  Framed input(l.images, l.in, l.size, l.size, pad, 0.0f), output(l.images, l.out, size, size, pad, 0.0f);
  input.fill(random);
  const std::vector<float> weight(std::size_t{1} * l.out * shape.inputs_per_block * l.kernel * l.kernel, 0.01f),
      ones(padded_channels(l.out), 1.0f);
  Aligned packed(kernels.packed_size(shape), 0.0f);
  kernels.pack(shape, weight.data(), packed.data());
  const std::int64_t pixels = std::int64_t{1} * l.images * size * size;
  std::vector<std::uint16_t> masks(pixels * padded_channels(l.out) / kLanes);
  const float infinity = std::numeric_limits<float>::infinity();
  ConvEpilogue epilogue{};
  epilogue.kind = kind, epilogue.scale = ones.data(), epilogue.bias = ones.data(), epilogue.high = infinity;
  epilogue.score_scale = ones.data(), epilogue.score_bias = ones.data(), epilogue.threshold = ones.data();
  epilogue.masks = masks.data();
  const ConvArgs args{&shape, packed.data(), input.map(), output.map(), epilogue, 0, pixels, 0,
                      padded_channels(l.out) / kLanes};
  std::vector<double> times;
  const double start = seconds_of(CLOCK_MONOTONIC);
  while (times.size() < 5 || seconds_of(CLOCK_MONOTONIC) - start < seconds) {
    const double before = seconds_of(CLOCK_THREAD_CPUTIME_ID);  // what other processes take does not count
    kernels.run(args);
    times.push_back(seconds_of(CLOCK_THREAD_CPUTIME_ID) - before);
  }
  const auto middle = times.begin() + times.size() / 2;
  std::nth_element(times.begin(), middle, times.end());
  const double macs = 1.0 * pixels * weight.size();
  std::printf("%-32s %10.1f us %7.1f GFLOP/s\n", title(l).c_str(), *middle * 1e6, 2e-9 * macs / *middle);
}

}  // namespace
}  // namespace headgate

int main(int argc, char** argv) {
  using namespace headgate;
  const std::string isa = argc > 1 ? argv[1] : "", part = argc > 2 ? argv[2] : "";
  const double seconds = argc > 3 ? std::atof(argv[3]) : 0.2;
  const ConvKernels& kernels = kernel_set(choose_isa(isa, isas_in_build(), isas_in_cpu())).conv;
  std::vector<Layer> layers;
  for (int images : {1, 32}) {
    for (int blocks : {1, 8, 4}) {
      for (bool shuffled : {false, true}) {
        if (blocks == 1 && shuffled) continue;
        for (const auto& [channels, size] : std::vector<std::pair<int, int>>{
                 {64, 32}, {64, 56}, {128, 16}, {128, 28}, {256, 8}, {256, 14}, {512, 4}, {512, 7}}) {
          layers.push_back({channels, channels, size, blocks, shuffled, images});
        }
        layers.push_back({256, 256, 14, blocks, shuffled, images, 1});
        if (blocks == 8) continue;
        layers.push_back({16, 16, 32, blocks, shuffled, images});
        layers.push_back({32, 32, 16, blocks, shuffled, images});
      }
    }
    layers.push_back({64, 64, 8, 4, false, images});
    layers.push_back({3, 64, 32, 1, false, images});
    layers.push_back({16, 32, 32, 4, true, images, 3, 2});
    layers.push_back({64, 128, 32, 8, true, images, 3, 2});
    layers.push_back({256, 64, 14, 8, false, images, 1});
    layers.push_back({3, 64, 224, 1, false, images, 7, 2});
    layers.push_back({3, 16, 32, 1, false, images});
    for (const auto& [channels, size] : std::vector<std::pair<int, int>>{{64, 32}, {128, 16}, {256, 8}, {64, 56}}) {
      layers.push_back({channels, 2 * channels, size, 8, false, images, 1, 2});
    }
  }
  for (const Layer& layer : layers) {
    if (title(layer).find(part) != std::string::npos) {
      measure(kernels, layer, layer.blocks == 1 ? Epilogue::plain : Epilogue::gate, seconds);
    }
  }
}
