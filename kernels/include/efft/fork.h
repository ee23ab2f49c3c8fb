// What a process that forks needs of a library with threads and locks.
//
// A child has one thread, the one that forked: locks that others held stay held, and OpenMP's team, which libgomp keeps
// for each thread that has used one, consists of threads that no longer exist; a parallel region would wait for them
// for ever.
#pragma once

#include <mutex>

namespace efft {

// A mutex that is free in a child: a fork waits until nobody holds it. For objects that live as long as the process.
class ForkMutex {
 public:
  ForkMutex();
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
};

// Whether the calling thread is the one that a fork left in this process.
bool thread_was_forked();

}  // namespace efft
