// A plan made in memory, in a temporary file.
#pragma once

#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>

#include "tests/check.h"
#include "tests/plan_file.h"

namespace headgate {

class PlanOnDisk {
 public:
  explicit PlanOnDisk(const PlanFile& plan) {
    const int file = ::mkstemp(path_.data());
    CHECK(file >= 0);
    ::close(file);
    std::ofstream(path_, std::ios::binary) << plan.bytes();
  }
  ~PlanOnDisk() { ::unlink(path_.c_str()); }
  PlanOnDisk(const PlanOnDisk&) = delete;
  PlanOnDisk& operator=(const PlanOnDisk&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_ = "/tmp/headgate_plan_XXXXXX";
};

}  // namespace headgate
