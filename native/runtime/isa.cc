#include "headgate/isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <iterator>

#include "runtime/built.h"

namespace headgate {
namespace {

bool has(const std::vector<Isa>& isas, Isa isa) { return std::find(isas.begin(), isas.end(), isa) != isas.end(); }

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::neon:
    case Isa::portable: break;
  }
#elif defined(__aarch64__)
  if (isa == Isa::neon) return true;  // Linux on AArch64 has Advanced SIMD
#endif
  return isa == Isa::portable;
}

const char* needs(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "AVX-512 F, BW, VL and DQ";
    case Isa::avx2: return "AVX2 and FMA";
    case Isa::neon: return "Advanced SIMD";
    case Isa::portable: break;
  }
  return "nothing";
}

const char* architecture(Isa isa) { return isa == Isa::neon ? "AArch64" : "x86-64"; }

std::atomic<int> g_active{-1};  // as an Isa; −1: not chosen yet

}  // namespace

const char* name(Isa isa) {
  switch (isa) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    case Isa::neon: return "neon";
    case Isa::portable: break;
  }
  return "portable";
}

std::vector<Isa> isas_in_build() {
  std::vector<Isa> isas;
  std::copy_if(std::begin(kIsas), std::end(kIsas), std::back_inserter(isas), built);
  return isas;
}

std::vector<Isa> isas_in_cpu() {
  std::vector<Isa> isas;
  std::copy_if(std::begin(kIsas), std::end(kIsas), std::back_inserter(isas), cpu_has);
  return isas;
}

Isa choose_isa(const std::string& wanted, const std::vector<Isa>& in_build, const std::vector<Isa>& in_cpu) {
  const auto usable = [&](Isa isa) { return has(in_build, isa) && has(in_cpu, isa); };
  const Isa* found = std::find_if(std::begin(kIsas), std::end(kIsas), usable);
  const Isa best = found == std::end(kIsas) ? Isa::portable : *found;
  if (wanted.empty()) return best;
  for (Isa isa : kIsas) {
    if (wanted != name(isa)) continue;
    if (!has(in_build, isa)) {
      throw BackendError("HEADGATE_ISA=" + wanted + ": this build of headgate lacks it; unset HEADGATE_ISA, set it to " +
                         name(best) + ", or build on " + architecture(isa));
    }
    if (!has(in_cpu, isa)) {
      throw BackendError("HEADGATE_ISA=" + wanted + ": this CPU lacks it (it needs " + needs(isa) +
                         "); unset HEADGATE_ISA, or set it to " + name(best));
    }
    return isa;
  }
  throw UnknownIsaError("HEADGATE_ISA must be portable, neon, avx2 or avx512, got " + wanted);
}

Isa active_isa() {
  int active = g_active.load(std::memory_order_relaxed);
  if (active < 0) {
    const char* wanted = std::getenv("HEADGATE_ISA");
    set_isa(wanted == nullptr ? "" : wanted);
    active = g_active.load(std::memory_order_relaxed);
  }
  return static_cast<Isa>(active);
}

void set_isa(const std::string& isa) {
  g_active.store(static_cast<int>(choose_isa(isa, isas_in_build(), isas_in_cpu())), std::memory_order_relaxed);
}

}  // namespace headgate
