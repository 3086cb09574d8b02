#include "engine/aligned.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <new>

namespace headgate {
namespace {

constexpr std::size_t kLarge = std::size_t{1} << 20, kHugePage = std::size_t{1} << 21;
constexpr std::align_val_t kAlignment{64};

// What begins in a huge page fills it if it takes half of it; else it gets small ones. To round everything up, a network's
// weights would take a quarter more; and from small pages alone they stream a fifth slower.
std::size_t whole_pages(std::size_t bytes) {
  const auto page = bytes % kHugePage < kHugePage / 2 ? static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) : kHugePage;
  return (bytes + page - 1) / page * page;
}

}  // namespace

void* allocate_zeroed(std::size_t bytes) {
  if (bytes < kLarge) return std::memset(::operator new(bytes + 1, kAlignment), 0, bytes + 1);
  // Aligned to huge pages: what lies before and behind is given back.
  const std::size_t size = whole_pages(bytes);
  void* const mapped = ::mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  const std::size_t before = -reinterpret_cast<std::uintptr_t>(mapped) % kHugePage;
  char* const block = static_cast<char*>(mapped) + before;
  if (before > 0) ::munmap(mapped, before);
  if (before < kHugePage) ::munmap(block + size, kHugePage - before);
  // Refused where the kernel has none: then small ones do.
  if (size >= kHugePage) ::madvise(block, size / kHugePage * kHugePage, MADV_HUGEPAGE);
  return block;
}

void release(void* block, std::size_t bytes) noexcept {
  if (bytes < kLarge) {
    ::operator delete(block, kAlignment);
  } else {
    ::munmap(block, whole_pages(bytes));
  }
}

}  // namespace headgate
