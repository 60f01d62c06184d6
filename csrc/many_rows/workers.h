// Tasks shared out among workers, each of which has scratch memory of its own.
#ifndef BITSMITH_PANELS_WORKERS_H
#define BITSMITH_PANELS_WORKERS_H

#include <atomic>
#include <cstdint>

#include "../parallel.h"

namespace bitsmith::panels {

// Gives every task in [0, count) to exactly one that asks.
class Tasks {
 public:
  explicit Tasks(int64_t count) : count_(count) {}

  bool take(int64_t* task) {
    *task = next_.fetch_add(1, std::memory_order_relaxed);
    return *task < count_;
  }

 private:
  std::atomic<int64_t> next_{0};
  const int64_t count_;
};

// Call work(worker, tasks) for each worker below `most` (or below `count`) on threads of their
// own, or one after the other: then the first one takes everything.
template <class Work>
void share(int64_t count, int most, const Work& work) {
  const int workers = count < most ? int(count) : most;
  struct Shared {
    const Work& work;
    Tasks tasks;
  } shared{work, Tasks(count)};
  parallel(
      workers, workers,
      [](int64_t worker, void* state) {
        auto* all = static_cast<Shared*>(state);
        all->work(worker, all->tasks);
      },
      &shared);
}

}  // namespace bitsmith::panels
#endif
