// One team of threads for a whole call, with phases that cost a fraction of a microsecond.
#pragma once

#include <omp.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "efft/fork.h"

namespace efft::cpu {

// A phase is over when its tasks are done, not when every thread has arrived: a thread that lost its core to another
// process holds nobody up unless it was in the middle of a task.
//
// The threads are OpenMP's, but for the thread that a fork left over: its OpenMP team exists no more (efft/fork.h), so
// that every call makes threads of its own, which costs some tens of microseconds each.
class Team {
 public:
  // Calls f(Member&) on up to `threads` threads and returns when all have finished. f must not throw, and no thread may
  // enter more than `phases` phases.
  template <typename F>
  static void run(int threads, int64_t phases, F f);

 private:
  friend class Member;
  struct alignas(64) Phase {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
  };

  // join(thread) for each of up to `threads` threads: where the system gives fewer, they do all the work.
  static void run_with_fresh_threads(int threads, const std::function<void(int thread)>& join);

  Team(int threads, int64_t phases) : threads_(threads), phases_(phases) {}

  int threads_;
  std::vector<Phase> phases_;
};

// A thread in a team. All members enter the same phases in the same order.
class Member {
 public:
  int thread() const { return thread_; }
  int team_size() const { return team_.threads_; }

  // Calls f(task) for every task in [0, tasks), each on whichever thread is free, and returns when all are done.
  template <typename F>
  void phase(int64_t tasks, F f) {
    Team::Phase& phase = team_.phases_[entered_++];
    int64_t mine = 0;
    for (int64_t task; (task = phase.next.fetch_add(1, std::memory_order_relaxed)) < tasks; ++mine) f(task);
    if (mine) phase.done.fetch_add(mine, std::memory_order_acq_rel);
    for (int spins = 0; phase.done.load(std::memory_order_acquire) != tasks; ++spins) {
      // Who waits longer than some tens of microseconds waits for a thread that has lost its core.
      if (spins < 2000) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

  // phase() over [0, count) in pieces of about `grain`: f(begin, end).
  template <typename F>
  void ranges(int64_t count, int64_t grain, F f) {
    const int64_t pieces = count < grain ? (count > 0) : count / grain;
    phase(pieces, [&](int64_t i) { f(i * count / pieces, (i + 1) * count / pieces); });
  }

 private:
  friend class Team;
  Member(Team& team, int thread) : team_(team), thread_(thread) {}

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
  }

  Team& team_;
  int thread_;
  int64_t entered_ = 0;
};

template <typename F>
void Team::run(int threads, int64_t phases, F f) {
  Team team(threads, phases);
  const auto join = [&](int thread) {
    Member member(team, thread);
    f(member);
  };
#ifdef EFFT_STD_THREADS
  // For ThreadSanitizer, which cannot see how libgomp's barriers order memory.
  return run_with_fresh_threads(threads, join);
#endif
  if (thread_was_forked()) return run_with_fresh_threads(threads, join);
#pragma omp parallel num_threads(threads)
  join(omp_get_thread_num());
}

}  // namespace efft::cpu
