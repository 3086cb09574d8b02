// Memory for weights and maps: 64-byte aligned, zeroed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <type_traits>

namespace headgate {

// Large blocks come straight from the system, in huge pages where it has them: the first touch of a plan's weights is
// most of the time that loading takes, and kernels miss the TLB less. Throws std::bad_alloc.
void* allocate_zeroed(std::size_t bytes);
void release(void* block, std::size_t bytes) noexcept;

template <class T>
class Aligned {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // Throws std::bad_alloc.
  explicit Aligned(std::int64_t size) : data_(nullptr, {static_cast<std::size_t>(size) * sizeof(T)}) {
    data_.reset(static_cast<T*>(allocate_zeroed(data_.get_deleter().bytes)));
  }
  T* data() const { return data_.get(); }

 private:
  struct Release {
    std::size_t bytes;
    void operator()(T* p) const noexcept { release(p, bytes); }
  };
  std::unique_ptr<T, Release> data_;
};

}  // namespace headgate
