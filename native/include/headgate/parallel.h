// A persistent pool of threads.
#pragma once

#include <cstdint>
#include <functional>

namespace headgate {

// Half-open range of rows.
struct Range {
  std::int64_t begin, end;
};

// Part `part` of `parts` nearly equal pieces of `rows`.
Range slice(std::int64_t rows, int part, int parts);

// How many parts are worth their start for `rows` rows of `row_bytes` bytes, at most `threads`.
int parts_for(std::int64_t rows, std::int64_t row_bytes, int threads);

// Calls body(part) once for every part in [0, parts), on the caller and up to parts − 1 workers; returns when all are
// done. All callers of a process share the workers: where others keep the cores busy, a caller gets fewer, or does all
// parts itself. The first exception that a part throws reaches the caller, when no part runs any more; parts that had
// not begun then are left out.
void parallel_for(int parts, const std::function<void(int)>& body);

// While one lives, its thread counts as busy for the callers of parallel_for in other threads.
class Working {
 public:
  Working();
  ~Working();
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;
};

// Cores that this process may keep busy: those of its CPU affinity, or fewer where its container has a quota.
int usable_cores();

}  // namespace headgate
