// The pool of threads: every part runs once, exceptions reach the caller, callers do not wait for each other, and
// together they keep no more threads busy than there are cores.
#include "headgate/parallel.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "runtime/cores.h"
#include "tests/check.h"

namespace headgate {
namespace {

constexpr int kRounds = 500;

TEST(every_part_runs_once) {
  for (int parts : {1, 2, 3, 7, 64}) {
    for (int round = 0; round < kRounds; ++round) {
      std::vector<std::atomic<int>> runs(static_cast<std::size_t>(parts));
      parallel_for(parts, [&](int part) { ++runs[static_cast<std::size_t>(part)]; });
      CHECK(std::all_of(runs.begin(), runs.end(), [](const auto& n) { return n == 1; }));
    }
  }
}

TEST(the_first_exception_reaches_the_caller) {
  for (int parts : {1, 2, 5}) {
    for (int round = 0; round < kRounds; ++round) {
      const int bad = round % parts;
      CHECK_THROWS(parallel_for(parts, [&](int part) { if (part == bad) throw std::out_of_range("part"); }),
                   std::out_of_range, "part");
      std::atomic<int> caught{0};
      try {
        parallel_for(parts, [](int) { throw std::bad_alloc(); });
      } catch (const std::bad_alloc&) {
        ++caught;
      }
      CHECK_EQ(caught.load(), 1);
      std::atomic<int> runs{0};
      parallel_for(parts, [&](int) { ++runs; });
      CHECK_EQ(runs.load(), parts);
    }
  }
}

TEST(a_body_may_call_again) {
  std::atomic<int> runs{0};
  parallel_for(3, [&](int) { parallel_for(4, [&](int) { ++runs; }); });
  CHECK_EQ(runs.load(), 12);
}

// Workers of one caller's job must not keep another's from having some, nor wait for it.
TEST(a_caller_beside_a_long_one) {
  std::atomic<bool> begun{false}, end{false};
  std::thread other([&] {
    parallel_for(2, [&](int) {
      begun = true;
      while (!end) std::this_thread::yield();
    });
  });
  while (!begun) std::this_thread::yield();
  std::atomic<int> runs{0};
  for (int round = 0; round < kRounds; ++round) parallel_for(3, [&](int) { ++runs; });
  CHECK_EQ(runs.load(), 3 * kRounds);
  end = true;
  other.join();
}

TEST(several_callers) {
  std::vector<std::thread> callers;
  std::atomic<int> runs{0}, caught{0};
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < kRounds; ++round) {
        try {
          parallel_for(2, [&](int part) {
            if (caller == 0 && part == 1) throw std::runtime_error("of one caller only");
            if (caller != 0) ++runs;
          });
        } catch (const std::runtime_error&) {
          ++caught;
        }
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  CHECK_EQ(runs.load(), 3 * 2 * kRounds);
  CHECK_EQ(caught.load(), kRounds);
}

// The most bodies that run at once while `callers` threads call with two parts each. With `working` all of them count
// as busy before the first call, as runs of engines do.
int most_at_once(int callers, bool working) {
  std::atomic<int> arrived{0}, inside{0}, running{0}, most{0};
  const auto wait_for_all = [callers](std::atomic<int>& there) {
    for (++there; there < callers;) std::this_thread::yield();
  };
  std::vector<std::thread> threads;
  for (int caller = 0; caller < callers; ++caller) {
    threads.emplace_back([&] {
      std::optional<Working> busy;
      if (working) busy.emplace();
      wait_for_all(arrived);
      for (int round = 0; round < kRounds / 25; ++round) {
        parallel_for(2, [&](int part) {
          const int now = ++running;
          for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
          }
          if (round == 0 && part == 0) wait_for_all(inside);  // the first part always begins
          for (int i = 0; i < 10; ++i) std::this_thread::yield();  // for other bodies to begin
          --running;
        });
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  return most;
}

// Of a folder of control groups with these files: their names and texts.
std::optional<int> quota_of(const std::vector<std::pair<std::string, std::string>>& files) {
  const std::string folder = std::filesystem::temp_directory_path() / ("headgate-" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder + "/cpu");
  for (const auto& [name, text] : files) std::ofstream(folder + "/" + name) << text;
  const std::optional<int> cores = quota_in_cores(folder);
  std::filesystem::remove_all(folder);
  return cores;
}

TEST(quotas_of_containers) {
  CHECK_EQ(quota_of({{"cpu.max", "150000 100000\n"}}).value_or(0), 2);
  CHECK_EQ(quota_of({{"cpu.max", "300000 100000\n"}}).value_or(0), 3);
  CHECK_EQ(quota_of({{"cpu.max", "1000 100000\n"}}).value_or(0), 1);
  for (const char* none : {"max 100000\n", "", "100000", "100000 0", "-1 100000", "x y"}) {
    CHECK(!quota_of({{"cpu.max", none}}));
  }
  CHECK(!quota_of({}));
  const auto version1 = [](const char* quota) {
    return quota_of({{"cpu/cpu.cfs_quota_us", quota}, {"cpu/cpu.cfs_period_us", "50000\n"}});
  };
  CHECK_EQ(version1("100000\n").value_or(0), 2);
  CHECK(!version1("-1\n"));
  CHECK(usable_cores() >= 1);
}

const int kCallers = std::max(4, usable_cores() + 2);

TEST(callers_share_the_cores) {
  const int most = most_at_once(kCallers, true);
  CHECK(most == kCallers);  // and not twice as many
}

// A helper that came when there was an idle core may still be at work when more callers come.
TEST(callers_that_come_later_find_few_helpers) {
  const int most = most_at_once(kCallers, false);
  CHECK(most >= kCallers);
  CHECK(most <= kCallers + std::max(usable_cores(), 2) - 1);
}

}  // namespace
}  // namespace headgate
