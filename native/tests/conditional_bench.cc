// Times the conditional kernels on square layers. Useful work is open outputs times the inputs outside the base block.
// Usage: conditional_bench [isa or "" [layers with this in their name, or "" [batch, or 0 for all [cold]]]]
// cold: every call finds other weights, which come from memory, as in a network that is larger than the caches.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <memory>
#include <string>

#include "engine/kernel_set.h"
#include "headgate/isa.h"
#include "kernels/conditional/conditional.h"
#include "tests/framed.h"

namespace headgate {
namespace {

struct Layer {
  const char* name;
  int channels, size, blocks;
  bool shuffled;
  int kernel = 3, stride = 1;
};

const Layer kLayers[] = {
    {"r20-16x32", 16, 32, 4, true},     {"r20-32x16", 32, 16, 4, true},     {"cifar-64x32", 64, 32, 8, false},
    {"cifar-128x16", 128, 16, 8, false}, {"cifar-256x8", 256, 8, 8, false},  {"cifar-512x4", 512, 4, 8, false},
    {"inet-64x56", 64, 56, 8, false},   {"inet-128x28", 128, 28, 8, false}, {"inet-256x14", 256, 14, 8, false},
    {"inet-512x7", 512, 7, 8, false},   {"stride2-128x16", 128, 16, 8, false, 3, 2},
    {"point-64x32", 64, 32, 8, false, 1}, {"point-256x14", 256, 14, 8, false, 1},
};

enum Kind { kIid, kClustered, kGroup, kGroupClustered };
const char* const kKinds[] = {"iid", "clustered", "group iid", "group clustered"};

// More than any cache holds.
constexpr std::int64_t kColdFloats = std::int64_t{1} << 25;

// Open where a random field is high: independent, or with correlation over four pixels, then with the same share open
// in every channel or group.
std::vector<std::uint16_t> masks_of(const Layer& layer, int images, Kind kind, double density, std::mt19937& random) {
  const int size = layer.size, words = layer.channels / kLanes, pixels = size * size;
  const bool group = kind == kGroup || kind == kGroupClustered, smooth = kind == kClustered || kind == kGroupClustered;
  const int width = group ? layer.channels / layer.blocks : 1, coarse = size / 4 + 2;
  std::vector<std::uint16_t> masks(std::int64_t{images} * pixels * words);
  std::normal_distribution<float> normal;
  std::vector<float> field(pixels), grid(coarse * coarse), sorted;
  for (int image = 0; image < images; ++image) {
    for (int d = 0; d < layer.channels / width; ++d) {
      for (float& v : grid) v = normal(random);
      for (int p = 0; p < pixels; ++p) {
        const float y = p / size / 4.0f, x = p % size / 4.0f, fy = y - int(y), fx = x - int(x);
        const float* g = &grid[int(y) * coarse + int(x)];
        const float upper = g[0] * (1 - fx) + g[1] * fx, lower = g[coarse] * (1 - fx) + g[coarse + 1] * fx;
        field[p] = smooth ? upper * (1 - fy) + lower * fy : normal(random);
      }
      sorted = field;
      const int open = std::max(1, int(density * pixels + 0.5));
      std::nth_element(sorted.begin(), sorted.end() - open, sorted.end());
      std::bernoulli_distribution alone(density);
      for (int p = 0; p < pixels; ++p) {
        if (smooth ? field[p] < sorted[pixels - open] : !alone(random)) continue;
        for (int c = d * width; c < (d + 1) * width; ++c) {
          masks[(std::int64_t{image} * pixels + p) * words + c / kLanes] |= 1u << c % kLanes;
        }
      }
    }
  }
  return masks;
}

// Of this thread: what other processes take does not count.
double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

// Cycles per second: a chain of additions takes one each.
double clock_rate() {
  double best = 0;
  for (int i = 0; i < 20; ++i) {
    const double start = now();
    std::uint64_t n = 0;
    for (int j = 0; j < 1000000; ++j) {
      n += j;
      asm volatile("" : "+r"(n));
    }
    best = std::max(best, 1e6 / (now() - start));
  }
  return best;
}

// Zeroed floats in huge pages, as the engine's weights are.
std::unique_ptr<float, decltype(&std::free)> huge(std::int64_t floats) {
  constexpr std::size_t kPage = std::size_t{1} << 21;
  const std::size_t bytes = (static_cast<std::size_t>(floats) * sizeof(float) + kPage - 1) / kPage * kPage;
  auto* const memory = static_cast<float*>(std::aligned_alloc(kPage, bytes));
  ::madvise(memory, bytes, MADV_HUGEPAGE);
  std::fill_n(memory, bytes / sizeof(float), 0.0f);
  return {memory, &std::free};
}

// GB/s of reading so many floats again and again, one after another: what weights cannot come faster than.
double read_rate(std::int64_t floats) {
  const auto memory = huge(floats);
  double best = 0;
  for (int i = 0; i < 5; ++i) {
    const double start = now();
    const auto* words = reinterpret_cast<const std::uint64_t*>(memory.get());
    std::uint64_t sum = 0;
    for (std::int64_t w = 0; w < floats / 2; ++w) sum += words[w];
    asm volatile("" : : "r"(sum) : "memory");
    best = std::max(best, 4e-9 * static_cast<double>(floats) / (now() - start));
  }
  return best;
}

// Weights that open decisions of `images` images read, in floats.
std::int64_t touched(const std::vector<std::uint16_t>& masks, const Layer& layer, int first, int images, int rest) {
  const int words = layer.channels / kLanes, pixels = layer.size * layer.size;
  std::vector<std::uint16_t> any(words);
  for (std::int64_t i = std::int64_t{first} * pixels * words; i < std::int64_t{first + images} * pixels * words; ++i) {
    any[i % words] |= masks[i];
  }
  std::int64_t channels = 0;
  for (std::uint16_t word : any) channels += __builtin_popcount(word);
  return channels * layer.kernel * layer.kernel * rest;
}

void bench(const ConditionalKernels& k, const Layer& layer, int images, Kind kind, double density, double rate,
           int lanes, bool cold) {
  std::mt19937 random(1);
  const int channels = layer.channels, pad = layer.kernel / 2, input_size = layer.size * layer.stride;
  ConvShape shape{channels, channels, {layer.kernel, layer.kernel}, {layer.stride, layer.stride}, {pad, pad}, {1, 1},
                  layer.blocks, channels / layer.blocks, {}};
  for (int j = 0; j < layer.blocks; ++j) {
    for (int i = 0; i < shape.inputs_per_block; ++i) {
      shape.inputs.push_back(layer.shuffled ? i * layer.blocks + j : j * shape.inputs_per_block + i);
    }
  }
  const bool group = kind == kGroup || kind == kGroupClustered;
  Framed input(images, channels, input_size, input_size, pad, 0.5f);
  Framed output(images, channels, layer.size, layer.size, 1, 0.5f);
  const std::vector<float> weight(std::int64_t{channels} * channels * layer.kernel * layer.kernel, 0.001f);
  const int decisions = group ? layer.blocks : channels;
  const std::int64_t size = k.packed_size(shape, decisions), next = (size + kLanes - 1) / kLanes * kLanes;
  const std::int64_t copies = cold ? kColdFloats / next + 1 : 1;
  const auto packed = huge(copies * next);
  for (std::int64_t i = 0; i < copies; ++i) k.pack(shape, decisions, weight.data(), packed.get() + i * next);
  Aligned scratch(k.scratch_bytes(shape, input.map(), output.map()) / 4, 0.0f);
  const std::vector<float> scale(channels, 0.5f), bias(channels, 0.5f);
  const std::vector<std::uint16_t> masks = masks_of(layer, images, kind, density, random);
  std::int64_t open = 0;
  for (std::uint16_t m : masks) open += __builtin_popcount(m);

  const int chunk = std::max(1, 512 / (layer.size * layer.size));  // as many images at a time as the engine takes
  std::int64_t read = 0;
  for (int image = 0; image < images; image += chunk) {
    read += touched(masks, layer, image, std::min(chunk, images - image), channels - shape.inputs_per_block);
  }

  std::vector<double> times;
  const double end = now() + 0.03;
  for (int i = 0; i < 5 || i < 2 * copies || now() < end; ++i) {
    const double start = now();
    for (int image = 0; image < images; image += chunk) {
      k.run({&shape, packed.get() + i % copies * next, input.map(), output.map(), scale.data(), bias.data(), 0.0f, 1e30f, nullptr,
             masks.data(), decisions, image, std::min(images, image + chunk), 0, layer.size, 0, channels,
             scratch.data()});
    }
    times.push_back(now() - start);
  }
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  const double time = times[times.size() / 2];
  const double macs = double(open) * layer.kernel * layer.kernel * (channels - shape.inputs_per_block);
  std::printf("%-15s %5d  %-15s %4.0f %% %10.1f us %8.1f cycles/output %7.1f GFLOP/s %5.1f %% of peak %6.2f MB of weights "
              "%5.1f GB/s\n", layer.name,
              images, kKinds[kind], 100.0 * open / (double(images) * layer.size * layer.size * channels), time * 1e6,
              time * rate / open, 2e-9 * macs / time, 100 * macs / lanes / (time * rate), 4e-6 * double(read),
              4e-9 * double(read) / time);
}

}  // namespace
}  // namespace headgate

int main(int argc, char** argv) {
  using namespace headgate;
  const Isa isa = choose_isa(argc > 1 ? argv[1] : "", isas_in_build(), isas_in_cpu());
  const std::string wanted = argc > 2 ? argv[2] : "";
  const int batch = argc > 3 ? std::atoi(argv[3]) : 0;
  const bool cold = argc > 4 && std::string(argv[4]) == "cold";
  const KernelSet kernels = kernel_set(isa);
  // Per cycle: one product of 512 bits, or two of 256 or 128.
  const int lanes = isa == Isa::avx512 || isa == Isa::avx2 ? 16 : 8;
  const double rate = clock_rate();
  std::printf("%s; %.2f GHz; peak %.1f GFLOP/s, if that is %d products a cycle\n", name(isa), rate * 1e-9,
              2e-9 * rate * lanes, lanes);
  std::printf("streaming reads: %.0f GB/s from 8 MB, %.0f GB/s from 128 MB\n", read_rate(1 << 21),
              read_rate(kColdFloats));
  for (const Layer& layer : kLayers) {
    if (std::string(layer.name).find(wanted) == std::string::npos) continue;
    for (int images : {1, 32}) {
      if (batch != 0 && batch != images) continue;
      for (Kind kind : {kIid, kClustered, kGroup, kGroupClustered}) {
        for (double density : {0.06, 0.2, 0.5}) {
          const bool group = kind == kGroup || kind == kGroupClustered;
          bench(group ? kernels.conditional_group : kernels.conditional_activation, layer, images, kind, density, rate,
                lanes, cold);
        }
      }
    }
  }
}
