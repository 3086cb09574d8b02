// detect [vnni] [bf16] [amx]: prints what the engine finds of a CPU with AVX-512, and fails where that is something
// else.
#include <cstdio>
#include <set>
#include <string>

#include "engine/kernel_set.h"
#include "headgate/isa.h"

int main(int argc, char** argv) {
  const std::set<std::string> expected(argv + 1, argv + argc);
  const headgate::Avx512Extras cpu = headgate::extras_in_cpu();
  std::set<std::string> found;
  if (cpu.vnni) found.insert("vnni");
  if (cpu.bf16) found.insert("bf16");
  if (cpu.amx) found.insert("amx");
  std::printf("%s", headgate::name(headgate::active_isa()));
  for (const std::string& feature : found) std::printf(" %s", feature.c_str());
  std::printf("\n");
  return headgate::active_isa() == headgate::Isa::avx512 && found == expected ? 0 : 1;
}
