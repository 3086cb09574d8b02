// Which instruction set the kernels use.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace headgate {

enum class Isa { portable, neon, avx2, avx512 };

// Every one, the best first.
constexpr Isa kIsas[] = {Isa::avx512, Isa::avx2, Isa::neon, Isa::portable};

// The CPU, or the build, lacks what was asked for; the message says which of the two and what to do.
class BackendError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The name has no instruction set behind it.
class UnknownIsaError : public std::invalid_argument {
 public:
  using std::invalid_argument::invalid_argument;
};

const char* name(Isa isa);

// What this build contains, and what this CPU runs.
std::vector<Isa> isas_in_build();
std::vector<Isa> isas_in_cpu();

// The named instruction set, which must be among those that the build and the CPU have; the best one for the empty name.
// Throws BackendError or UnknownIsaError.
Isa choose_isa(const std::string& wanted, const std::vector<Isa>& in_build, const std::vector<Isa>& in_cpu);

// The instruction set in use: on first call what the environment variable HEADGATE_ISA names, else the best one.
// Throws BackendError or UnknownIsaError.
Isa active_isa();

// Switches every later call to the named instruction set; the empty name means the best one.
void set_isa(const std::string& isa);

}  // namespace headgate
