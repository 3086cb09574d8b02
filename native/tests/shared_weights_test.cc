// Who shares packed weights with whom.
#include "engine/shared_weights.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "engine/kernel_set.h"
#include "tests/check.h"
#include "tests/isas.h"

namespace headgate {
namespace {

ConvShape shape_of(int blocks) {
  ConvShape shape{32, 32, {3, 3}, {1, 1}, {1, 1}, {1, 1}, blocks, 32 / blocks, {}};
  for (int i = 0; i < 32; ++i) shape.inputs.push_back(i);
  return shape;
}

const std::shared_ptr<const MappedFile> kFile = MappedFile::copy_of({});
const KernelSet kKernels = kernel_set(Isa::portable);
const std::vector<float> kWeight(32 * 32 * 9, 1.0f), kOther(32 * 32 * 9, 2.0f);

TEST(what_is_alike_is_shared) {
  SharedWeights shared(*kFile);
  const PackedWeights conv = shared.conv(kKernels.conv, shape_of(1), kWeight.data());
  CHECK(shared.conv(kKernels.conv, shape_of(1), kWeight.data()) == conv);
  const PackedWeights base = shared.base(kKernels.conv, shape_of(4), kWeight.data());
  CHECK(shared.base(kKernels.conv, shape_of(4), kWeight.data()) == base);
  const PackedWeights rest = shared.conditional(kKernels.conditional_group, shape_of(4), 4, kWeight.data());
  CHECK(shared.conditional(kKernels.conditional_group, shape_of(4), 4, kWeight.data()) == rest);
}

TEST(what_differs_is_not) {
  SharedWeights shared(*kFile);
  const ConvShape shape = shape_of(4);
  std::vector<PackedWeights> all{shared.conv(kKernels.conv, shape_of(1), kWeight.data()),
                                 shared.conv(kKernels.conv, shape_of(1), kOther.data()),
                                 shared.base(kKernels.conv, shape, kWeight.data()),
                                 shared.base(kKernels.conv, shape_of(2), kWeight.data()),
                                 shared.base(kKernels.conv, shape_of(1), kWeight.data()),
                                 shared.conditional(kKernels.conditional_group, shape, 4, kWeight.data()),
                                 shared.conditional(kKernels.conditional_group, shape, 2, kWeight.data()),
                                 shared.conditional(kKernels.conditional_activation, shape, 32, kWeight.data()),
                                 shared.conditional(kKernels.conditional_group, shape, 32, kWeight.data())};
  ConvShape changed = shape_of(1);
  changed.dilation[1] = 2;
  all.push_back(shared.conv(kKernels.conv, changed, kWeight.data()));
  changed.stride[0] = 2;
  all.push_back(shared.conv(kKernels.conv, changed, kWeight.data()));
  std::swap(changed.inputs[0], changed.inputs[1]);
  all.push_back(shared.conv(kKernels.conv, changed, kWeight.data()));
  for (std::size_t i = 0; i < all.size(); ++i) {
    for (std::size_t j = 0; j < i; ++j) CHECK(all[i] != all[j]);
  }
}

TEST(weights_live_as_long_as_somebody_holds_them) {
  SharedWeights shared(*kFile);
  std::weak_ptr<const Aligned<float>> seen = shared.conv(kKernels.conv, shape_of(1), kWeight.data());
  CHECK(seen.expired());
  CHECK(shared.conv(kKernels.conv, shape_of(1), kWeight.data()) != nullptr);
}

TEST(threads_that_ask_at_once_get_the_same) {
  SharedWeights shared(*kFile);
  constexpr int kThreads = 8;
  std::vector<PackedWeights> got(kThreads);
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { got[i] = shared.conv(kKernels.conv, shape_of(1), kWeight.data()); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const PackedWeights& weights : got) CHECK(weights != nullptr && weights == got[0]);
}

bool fails = true;

std::int64_t size(const ConvShape&) { return 16; }
void pack(const ConvShape&, const float*, float* packed, int, int) {
  if (fails) throw std::bad_alloc();
  packed[0] = 7.0f;
}

TEST(after_a_failure_weights_are_packed_again) {
  SharedWeights shared(*kFile);
  const ConvKernels kernels{16, size, nullptr, nullptr, pack};
  bool thrown = false;
  try {
    shared.conv(kernels, shape_of(1), kWeight.data());
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  CHECK(thrown);
  fails = false;
  CHECK(shared.conv(kernels, shape_of(1), kWeight.data())->data()[0] == 7.0f);
}

// Large tensors are packed in parts.
TEST(parts_make_the_whole) {
  for (int blocks : {1, 2, 4}) {
    for (int outputs : {16, 40, 64}) {
      ConvShape shape = shape_of(blocks);
      shape.out_channels = outputs;
      std::vector<float> weight(static_cast<std::size_t>(outputs) * shape.inputs_per_block * 9);
      std::iota(weight.begin(), weight.end(), 1.0f);
      for (Isa isa : isas()) {
        const ConvKernels& kernels = kernel_set(isa).conv;
        const auto size = static_cast<std::size_t>(kernels.packed_size(shape));
        std::vector<float> whole(size, -1.0f), parts(size, -2.0f);
        kernels.pack(shape, weight.data(), whole.data());
        for (int first = 0; first < outputs; first += 2 * kLanes) {
          kernels.pack_outputs(shape, weight.data(), parts.data(), first, std::min(outputs, first + 2 * kLanes));
        }
        CHECK(std::memcmp(whole.data(), parts.data(), size * sizeof(float)) == 0);
      }
    }
  }
}

}  // namespace
}  // namespace headgate
