#include "headgate/parallel.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace headgate {
namespace {

// About 20 µs: bridges the gap between the passes of one operator without keeping a core from others for long.
constexpr int kSpins = 2000;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

class Pool {
 public:
  // One caller at a time; a second one is told to do its work itself.
  bool try_run(int parts, const std::function<void(int)>& body) {
    std::unique_lock caller(caller_, std::try_to_lock);
    if (!caller.owns_lock()) return false;
    for (; workers_ < parts - 1; ++workers_) std::thread([this] { work(); }).detach();
    {
      std::lock_guard lock(mutex_);
      body_ = &body;
      parts_ = parts;
      next_.store(0, std::memory_order_relaxed);
      unfinished_.store(parts, std::memory_order_relaxed);
      generation_.fetch_add(1, std::memory_order_release);
    }
    for (int i = 1; i < parts; ++i) wake_.notify_one();
    drain(body, parts);
    for (int i = 0; i < kSpins && unfinished_.load(std::memory_order_acquire) != 0; ++i) pause();
    std::unique_lock lock(mutex_);
    body_ = nullptr;  // who comes now is too late
    // Also wait for workers inside drain(): they hold a reference to `body`.
    done_.wait(lock, [this] { return unfinished_.load(std::memory_order_acquire) == 0 && draining_ == 0; });
    return true;
  }

 private:
  void drain(const std::function<void(int)>& body, int parts) {
    for (int part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts;) {
      body(part);
      unfinished_.fetch_sub(1, std::memory_order_acq_rel);
    }
  }

  void work() {
    // The run that started this worker may be over or not: look at it in either case.
    std::uint64_t seen = 0;
    for (;;) {
      for (int i = 0; i < kSpins && generation_.load(std::memory_order_acquire) == seen; ++i) pause();
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

  std::mutex caller_, mutex_;
  std::condition_variable wake_, done_;
  const std::function<void(int)>* body_ = nullptr;
  int workers_ = 0, parts_ = 0, draining_ = 0;
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
