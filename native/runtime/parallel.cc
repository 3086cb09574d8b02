#include "headgate/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace headgate {
namespace {

// Bridges the gap between the passes of one operator without keeping a core from others for long.
constexpr auto kSpin = std::chrono::microseconds(20);

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// Looks at `done` for a while before the caller goes to sleep.
template <class F>
void spin_until(F done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  while (!done() && std::chrono::steady_clock::now() < end) {
    for (int i = 0; i < 16 && !done(); ++i) pause();
  }
}

// Callers at work in this process: in a run of an engine, or in parallel_for.
std::atomic<int> g_callers{0};
thread_local int t_depth = 0;  // of this thread's Working objects

// One call of parallel_for, on the caller's stack.
class Job {
 public:
  Job(int parts, const std::function<void(int)>& body) : parts_(parts), body_(body), unfinished_(parts) {}

  // Does parts until there are none left to begin.
  void drain() {
    for (int part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) {
      try {
        if (!failed_.load(std::memory_order_relaxed)) body_(part);
      } catch (...) {
        if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
      }
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  bool done() const { return unfinished_.load(std::memory_order_acquire) == 0; }

  // Once done: the first exception of a part.
  void rethrow() const {
    if (error_) std::rethrow_exception(error_);
  }

  int wanted = 0, helping = 0;  // workers; of the pool's mutex

 private:
  const int parts_;
  const std::function<void(int)>& body_;
  std::atomic<int> next_{0}, unfinished_;
  std::atomic<bool> failed_{false};  // parts that were not begun are left out
  std::exception_ptr error_;         // written by the part that set failed_
};

class Pool {
 public:
  void run(int parts, const std::function<void(int)>& body) {
    Job job(parts, body);
    const int helpers = open(job, parts);
    job.drain();
    if (helpers > 0) {
      spin_until([&] { return job.done(); });
      std::unique_lock lock(mutex_);
      open_.erase(std::find(open_.begin(), open_.end(), &job));
      engaged_ -= job.wanted;  // who has not come by now is too late
      left_.wait(lock, [&] { return job.helping == 0; });
    }
    job.rethrow();
  }

 private:
  // As many helpers as parts want, and as cores have nothing to do. Not fewer than the parts want where nobody else
  // works: who asks for more threads than there are cores gets them.
  int open(Job& job, int parts) {
    int helpers = 0;
    {
      std::lock_guard lock(mutex_);
      const int idle = std::max(cores_, parts) - g_callers.load(std::memory_order_relaxed) - engaged_;
      job.wanted = helpers = hire(std::clamp(idle, 0, parts - 1));
      if (helpers == 0) return 0;
      open_.push_back(&job);
      engaged_ += helpers;
      generation_.fetch_add(1, std::memory_order_release);
    }
    for (int i = 0; i < helpers; ++i) wake_.notify_one();
    return helpers;
  }

  // How many of `helpers` more can work: where the system has no more threads to give, those that are there.
  int hire(int helpers) {
    try {
      for (; workers_ - engaged_ < helpers; ++workers_) std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
    }
    return std::min(helpers, workers_ - engaged_);
  }

  Job* next_job() const {
    const auto wants = [](const Job* job) { return job->wanted > 0; };
    const auto found = std::find_if(open_.begin(), open_.end(), wants);
    return found == open_.end() ? nullptr : *found;
  }

  void work() {
    for (;;) {
      const std::uint64_t seen = generation_.load(std::memory_order_acquire);
      std::unique_lock lock(mutex_);
      Job* job = next_job();
      if (job == nullptr) {
        lock.unlock();
        spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });
        lock.lock();
        wake_.wait(lock, [&] { return (job = next_job()) != nullptr; });
      }
      --job->wanted, ++job->helping;
      lock.unlock();
      job->drain();
      lock.lock();
      --engaged_;
      if (--job->helping == 0) left_.notify_all();
    }
  }

  const int cores_ = usable_cores();
  std::mutex mutex_;  // of all that is not atomic
  std::condition_variable wake_, left_;
  std::vector<Job*> open_;
  int workers_ = 0, engaged_ = 0;  // there are, and of those help or are asked to
  std::atomic<std::uint64_t> generation_{0};
};

std::atomic<Pool*> g_pool{nullptr};

// Never destroyed: its threads may outlive static destructors. A forked child has none of its parent's threads, so
// it forgets the parent's pool and makes its own at need.
Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] {
    g_pool.store(nullptr);
    g_callers.store(t_depth > 0 ? 1 : 0);
  });
  static_cast<void>(registered);
  Pool* current = g_pool.load(std::memory_order_acquire);
  if (current == nullptr) {
    auto* fresh = new Pool;
    if (g_pool.compare_exchange_strong(current, fresh)) return *fresh;
    delete fresh;
  }
  return *current;
}

}  // namespace

Range slice(std::int64_t rows, int part, int parts) { return {rows * part / parts, rows * (part + 1) / parts}; }

int parts_for(std::int64_t rows, std::int64_t row_bytes, int threads) {
  constexpr std::int64_t kWorthwhileBytes = 32 * 1024;  // a few µs of work
  const std::int64_t most = std::max<std::int64_t>(1, rows * row_bytes / kWorthwhileBytes);
  return static_cast<int>(std::clamp<std::int64_t>(std::min<std::int64_t>(most, rows), 1, std::max(threads, 1)));
}

Working::Working() {
  if (t_depth++ == 0) g_callers.fetch_add(1, std::memory_order_relaxed);
}

Working::~Working() {
  if (--t_depth == 0) g_callers.fetch_sub(1, std::memory_order_relaxed);
}

void parallel_for(int parts, const std::function<void(int)>& body) {
  if (parts == 1) return body(0);
  const Working working;
  pool().run(parts, body);
}

}  // namespace headgate
