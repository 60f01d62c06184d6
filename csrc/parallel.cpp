#include "parallel.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#include "bitsmith_kernels.h"

namespace bitsmith {
namespace {

// Work that threads take item by item.
struct Work {
  std::atomic<int64_t> next{0};
  int64_t items;
  void (*body)(int64_t, void*);
  void* state;

  void run() {
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < items;) {
      body(item, state);
    }
  }
};

void run_work(void* work) { static_cast<Work*>(work)->run(); }

using GompParallel = void (*)(void (*)(void*), void*, unsigned threads, unsigned flags);
std::atomic<GompParallel> gomp{nullptr};

constexpr int kMostHelpers = 255;
constexpr int kSpins = 2000;  // some microseconds; then a helper sleeps

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Threads that wait for work. It is never destroyed: its helpers may outlive static objects.
class Pool {
 public:
  // Returns false where the pool is at work for somebody else.
  bool run(Work* work, int threads) {
    std::unique_lock<std::mutex> mine(busy_, std::try_to_lock);
    if (!mine.owns_lock()) return false;
    const int helpers = grow(threads - 1);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      work_ = work;
      wanted_ = helpers;
      running_.store(helpers, std::memory_order_relaxed);
      round_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    work->run();
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0; ++spins) {
      if (spins < kSpins) {
        relax();
      } else {
        std::this_thread::yield();
      }
    }
    return true;
  }

 private:
  int grow(int helpers) {
    if (helpers > kMostHelpers) helpers = kMostHelpers;
    for (; helpers_ < helpers; ++helpers_) {
      const int index = helpers_;
      const uint64_t seen = round_.load();
      try {
        std::thread([this, index, seen] { help(index, seen); }).detach();
      } catch (const std::system_error&) {
        break;  // as many as the system gives
      }
    }
    return helpers_ < helpers ? helpers_ : helpers;
  }

  void help(int index, uint64_t seen) {
    for (;;) {
      wait_for_round(seen);
      Work* work;
      bool mine;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        seen = round_.load(std::memory_order_relaxed);
        mine = index < wanted_;
        work = work_;
      }
      if (!mine) continue;
      work->run();
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait_for_round(uint64_t seen) {
    for (int spins = 0; spins < kSpins; ++spins) {
      if (round_.load(std::memory_order_acquire) != seen) return;
      relax();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return round_.load(std::memory_order_relaxed) != seen; });
  }

  std::mutex busy_, mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> round_{0};
  std::atomic<int> running_{0};
  Work* work_ = nullptr;
  int wanted_ = 0, helpers_ = 0;
};

std::atomic<Pool*> pool{nullptr};
std::once_flag fork_once;

// The helpers do not follow into a child process: it starts anew.
void forget_pool() { pool.store(nullptr); }

Pool* get_pool() {
  if (Pool* found = pool.load(std::memory_order_acquire)) return found;
  std::call_once(fork_once, [] { pthread_atfork(nullptr, nullptr, forget_pool); });
  Pool* made = new (std::nothrow) Pool;
  Pool* none = nullptr;
  if (!made || pool.compare_exchange_strong(none, made)) return made;
  delete made;
  return none;
}

}  // namespace

void parallel(int64_t items, int threads, void (*body)(int64_t item, void* state), void* state) {
  Work work;
  work.items = items;
  work.body = body;
  work.state = state;
  if (items < threads) threads = static_cast<int>(items);
  if (threads <= 1) return work.run();
  if (const GompParallel team = gomp.load(std::memory_order_relaxed)) {
    return team(run_work, &work, static_cast<unsigned>(threads), 0);
  }
  Pool* own = get_pool();
  if (!own || !own->run(&work, threads)) work.run();
}

}  // namespace bitsmith

extern "C" void bsk_use_gomp(void* gomp_parallel) {
  bitsmith::gomp.store(reinterpret_cast<bitsmith::GompParallel>(gomp_parallel));
}
