// Times the stages of narrow convolutions on one core:
// narrow_bench [int8 or bfloat16 [isa [part of a layer's name [seconds per stage]]]].
// Work is products of the base path, and of open outputs with the inputs outside their base block.
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <numeric>
#include <string>

#include "tests/narrow_problem.h"

namespace headgate {
namespace {

struct Layer {
  const char* name;
  int channels, size, blocks;
  bool shuffled;
  int images;
};

const Layer kLayers[] = {
    {"64x32 G8 b1", 64, 32, 8, false, 1},    {"128x16 G8 b1", 128, 16, 8, false, 1},
    {"256x8 G8 b1", 256, 8, 8, false, 1},    {"512x4 G8 b1", 512, 4, 8, false, 1},
    {"512x4 G8 b32", 512, 4, 8, false, 32},  {"64x32 G8s b1", 64, 32, 8, true, 1},
    {"16x32 G4s b1", 16, 32, 4, true, 1},    {"32x16 G4s b1", 32, 16, 4, true, 1},
    {"64x8 G4s b1", 64, 8, 4, true, 1},
    {"64x32 dense b1", 64, 32, 1, false, 1}, {"256x8 dense b1", 256, 8, 1, false, 1},
};

double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);  // what other processes take does not count
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

template <class F>
double best_of(double seconds, F stage) {
  double best = 1e9;
  const double end = now() + seconds;
  for (int i = 0; i < 5 || now() < end; ++i) {
    const double start = now();
    stage();
    best = std::min(best, now() - start);
  }
  return best;
}

void measure(Numbers numbers, const NarrowKernels& k, const Layer& l, double seconds) {
  ConvShape shape{l.channels, l.channels, {3, 3}, {1, 1}, {1, 1}, {1, 1}, l.blocks, l.channels / l.blocks, {}};
  for (int i = 0; i < l.channels; ++i) {
    const int block = i / shape.inputs_per_block, input = i % shape.inputs_per_block;
    shape.inputs.push_back(l.shuffled ? input * l.blocks + block : i);
  }
  const NarrowProblem p(numbers, shape, l.images, l.size, l.size, l.blocks);
  const NarrowOrder order = narrow_order(shape, true, k.format);
  const NarrowWeights base = pack_narrow(shape, p.base_weight().data(), order, 0, k.format);
  const NarrowWeights rest = pack_narrow_rest(shape, p.weight.data(), l.blocks, order, 0, k.format);
  NarrowInput input(k, p, order, 0, l.images, 0, l.size);
  Framed output(l.images, l.channels, l.size, l.size, 1, 0.0f);
  Bytes sums(k.conv_scratch_bytes(l.channels)), scratch(k.conditional_scratch_bytes(l.channels, l.blocks));
  std::vector<std::uint16_t> masks(p.pixels() * p.words());
  const double base_macs = 9.0 * static_cast<double>(p.pixels()) * l.channels * shape.inputs_per_block;

  const auto show = [&](const char* stage, double time, double macs) {
    std::printf("%-15s %-22s %8.1f us", l.name, stage, time * 1e6);
    if (macs > 0) std::printf(" %8.1f GMAC/s", macs / time * 1e-9);
    std::printf("\n");
  };
  show("round", best_of(seconds, [&] {
         k.round({p.input.map(), input.map, order.identity ? nullptr : order.channel_at.data(), {40.0f, 0}});
       }), 0);
  const NarrowEpilogue kind = l.blocks == 1 ? NarrowEpilogue::plain : NarrowEpilogue::group;
  const NarrowEnding ending = p.ending(kind, false, false, masks.data());
  show(l.blocks == 1 ? "dense" : "base path", best_of(seconds, [&] {
         k.conv({&shape, base.view(), input.map, output.map(), ending, 0, p.pixels(), sums.data()});
       }), base_macs);
  for (double density : {0.06, 0.2}) {
    if (l.blocks == 1) break;
    std::mt19937 random(1);
    std::int64_t open = 0;
    std::fill(masks.begin(), masks.end(), 0);
    const int size = l.channels / l.blocks;
    for (std::int64_t pixel = 0; pixel < p.pixels(); ++pixel) {
      for (int d = 0; d < l.blocks; ++d) {
        if (random() % 1000 >= 1000 * density) continue;
        open += size;
        for (int c = d * size; c < (d + 1) * size; ++c) masks[pixel * p.words() + c / kLanes] |= 1u << c % kLanes;
      }
    }
    const std::string stage = "conditional, " + std::to_string(static_cast<int>(100 * density)) + " %";
    show(stage.c_str(), best_of(seconds, [&] {
           k.conditional({&shape, rest.view(), input.map, output.map(), p.constants[6].data(), p.constants[7].data(),
                          -0.5f, 2.0f, nullptr, nullptr, masks.data(), 0, p.pixels(), scratch.data()});
         }), 9.0 * static_cast<double>(open) * (l.channels - shape.inputs_per_block));
  }
}

}  // namespace
}  // namespace headgate

int main(int argc, char** argv) {
  using namespace headgate;
  const std::string numbers = argc > 1 ? argv[1] : "bfloat16", isa = argc > 2 ? argv[2] : "avx512";
  const std::string part = argc > 3 ? argv[3] : "";
  const double seconds = argc > 4 ? std::atof(argv[4]) : 0.1;
  const KernelSet set = kernel_set(isa == "avx512" ? Isa::avx512 : isa == "avx2" ? Isa::avx2 : Isa::portable);
  for (const Layer& layer : kLayers) {
    if (std::string(layer.name).find(part) == std::string::npos) continue;
    if (numbers == "int8") measure(Numbers::int8, set.int8, layer, seconds);
    if (numbers == "bfloat16") measure(Numbers::bfloat16, set.bfloat16, layer, seconds);
  }
}
