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
#include <utility>

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

class Pool {
 public:
  // One caller at a time; a second one, or a body that calls again, is told to do its work itself: several engines in
  // one process never run more threads than there are callers and workers of one of them.
  bool try_run(int parts, const std::function<void(int)>& body) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    hire(parts - 1);
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      parts_ = parts;
      error_ = nullptr;
      failed_.store(false, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      unfinished_.store(parts, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    for (int i = 1; i < parts; ++i) wake_.notify_one();
    drain(body, parts);
    spin_until([this] { return unfinished_.load(std::memory_order_acquire) == 0; });
    std::exception_ptr error;
    {
      std::unique_lock lock(mutex_);
      body_ = nullptr;  // who comes now is too late
      // Also wait for workers inside drain(): they hold a reference to `body`.
      done_.wait(lock, [this] { return unfinished_.load(std::memory_order_acquire) == 0 && draining_ == 0; });
      error = std::exchange(error_, nullptr);
    }
    busy_.store(false, std::memory_order_release);
    if (error) std::rethrow_exception(error);
    return true;
  }

 private:
  // Where the system has no more threads to give, those that are there do all parts.
  void hire(int workers) {
    try {
      for (; workers_ < workers; ++workers_) std::thread([this] { work(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void drain(const std::function<void(int)>& body, int parts) {
    for (int part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts;) {
      try {
        if (!failed_.load(std::memory_order_relaxed)) body(part);
      } catch (...) {
        std::lock_guard lock(mutex_);
        if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
      }
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void work() {
    // The run that started this worker may be over or not: look at it in either case.
    std::uint64_t seen = 0;
    for (;;) {
      spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });
      std::unique_lock lock(mutex_);
      wake_.wait(lock, [&] { return generation_.load(std::memory_order_relaxed) != seen; });
      seen = generation_.load(std::memory_order_relaxed);
      if (body_ == nullptr) continue;
      const std::function<void(int)>& body = *body_;
      const int parts = parts_;
      ++draining_;
      lock.unlock();
      drain(body, parts);
      lock.lock();
      if (--draining_ == 0) done_.notify_one();
    }
  }

  std::atomic<bool> busy_{false};
  std::mutex mutex_;  // of body_, parts_, draining_ and error_
  std::condition_variable wake_, done_;
  const std::function<void(int)>* body_ = nullptr;
  int workers_ = 0, parts_ = 0, draining_ = 0;
  std::exception_ptr error_;         // the first that a part threw
  std::atomic<bool> failed_{false};  // whether there is one: parts that were not begun are left out
  std::atomic<int> next_{0}, unfinished_{0};
  std::atomic<std::uint64_t> generation_{0};
};

std::atomic<Pool*> g_pool{nullptr};

// Never destroyed: its threads may outlive static destructors. A forked child has none of its parent's threads, so
// it forgets the parent's pool and makes its own at need.
Pool& pool() {
  static const int registered = pthread_atfork(nullptr, nullptr, [] { g_pool.store(nullptr); });
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

void parallel_for(int parts, const std::function<void(int)>& body) {
  if (parts > 1 && pool().try_run(parts, body)) return;
  for (int part = 0; part < parts; ++part) body(part);
}

}  // namespace headgate
