#include "headgate/isa.h"

#include <atomic>
#include <cstdlib>

#include "runtime/built.h"

namespace headgate {
namespace {

constexpr Isa kBestFirst[] = {Isa::avx512, Isa::avx2, Isa::portable};

Isa best() {
  for (Isa isa : kBestFirst) {
    if (cpu_has(isa) && build_has(isa)) return isa;
  }
  return Isa::portable;
}

Isa choose(const std::string& wanted) {
  if (wanted.empty()) return best();
  for (Isa isa : kBestFirst) {
    if (wanted != name(isa)) continue;
    if (!build_has(isa)) {
      throw BackendError("HEADGATE_ISA=" + wanted + ": this build lacks it; unset HEADGATE_ISA, or build for x86-64 with a compiler that knows it");
    }
    if (!cpu_has(isa)) {
      throw BackendError("HEADGATE_ISA=" + wanted + ": this CPU lacks it; unset HEADGATE_ISA, or set it to " + name(best()));
    }
    return isa;
  }
  throw UnknownIsaError("HEADGATE_ISA must be portable, avx2 or avx512, got " + wanted);
}

std::atomic<int> g_active{-1};  // as an Isa; −1: not chosen yet

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    case Isa::portable: break;
  }
  return "portable";
}

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16");
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::portable: return true;
  }
#endif
  return isa == Isa::portable;
}

bool build_has(Isa isa) { return isa == Isa::portable || built(isa); }

Isa active_isa() {
  int active = g_active.load(std::memory_order_relaxed);
  if (active < 0) {
    const char* wanted = std::getenv("HEADGATE_ISA");
    active = static_cast<int>(choose(wanted == nullptr ? "" : wanted));
    g_active.store(active, std::memory_order_relaxed);
  }
  return static_cast<Isa>(active);
}

void set_isa(const std::string& isa) { g_active.store(static_cast<int>(choose(isa)), std::memory_order_relaxed); }

}  // namespace headgate
