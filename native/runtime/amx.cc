#include "runtime/amx.h"

#include <cpuid.h>

#include <cstdint>

#if defined(__linux__)
#include <asm/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace headgate {
namespace {

constexpr int kTileData = 18;  // the tiles' number among the states that XCR0 and the kernel know

bool has_instructions() {
  if (!__builtin_cpu_supports("avx512bf16")) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned kOsXsave = 1u << 27, kBf16 = 1u << 22, kTile = 1u << 24;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & kOsXsave) == 0) return false;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kBf16) == 0 || (d & kTile) == 0) return false;
  std::uint32_t low = 0, high = 0;
  asm("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr std::uint32_t kStates = 1u << kTileData | 1u << (kTileData - 1);
  return (low & kStates) == kStates;
}

// Of the whole process, threads that run already included. Linux grants the state only to those that ask.
bool allowed() {
#if defined(__linux__)
#ifndef ARCH_REQ_XCOMP_PERM
#define ARCH_REQ_XCOMP_PERM 0x1023
#endif
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

bool cpu_has_amx() {
  static const bool has = has_instructions() && allowed() && amx_multiplies();
  return has;
}

}  // namespace headgate
