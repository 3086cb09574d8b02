// Which instruction set the kernels use.
#pragma once

#include <stdexcept>
#include <string>

namespace headgate {

enum class Isa { portable, avx2, avx512 };

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

// Whether this CPU runs `isa`, and whether this build contains it.
bool cpu_has(Isa isa);
bool build_has(Isa isa);

// The instruction set in use: on first call what the environment variable HEADGATE_ISA names, else the best one.
// Throws BackendError or UnknownIsaError.
Isa active_isa();

// Switches every later call to the named instruction set; the empty name means the best one.
void set_isa(const std::string& isa);

}  // namespace headgate
