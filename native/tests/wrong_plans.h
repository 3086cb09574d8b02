// Plans with an error, and what the reader says of them.
#pragma once

#include <string>
#include <vector>

#include "engine/plan.h"
#include "engine/safetensors.h"
#include "tests/check.h"
#include "tests/plan_file.h"

namespace headgate {

inline Plan parse(const std::string& bytes) { return parse_plan(MappedFile::copy_of(bytes), "m"); }

inline std::string replaced(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  CHECK(at != std::string::npos);
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

// An edit of a valid plan's description, and the error that it must give, after the file's name.
struct Wrong {
  const char *from, *to;
  std::string message;
};

inline void check_wrong(const PlanFile& valid, const std::vector<Wrong>& edits) {
  for (const Wrong& edit : edits) {
    PlanFile file = valid;
    file.plan = replaced(file.plan, edit.from, edit.to);
    CHECK_THROWS(parse(file.bytes()), PlanError, "m: " + edit.message);
  }
}

}  // namespace headgate
