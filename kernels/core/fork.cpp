#include "efft/fork.h"

#include <pthread.h>

#include <vector>

namespace efft {

namespace {

thread_local bool forked = false;

// In the order of their making; a fork takes them all, so nobody may hold one while asking for another.
std::vector<ForkMutex*>& all() {
  static auto* mutexes = new std::vector<ForkMutex*>;
  return *mutexes;
}

void release_all() {
  for (ForkMutex* mutex : all()) mutex->unlock();
}

const bool registered = [] {
  pthread_atfork(
      [] {
        for (ForkMutex* mutex : all()) mutex->lock();
      },
      release_all,
      [] {
        release_all();
        forked = true;
      });
  return true;
}();

}  // namespace

ForkMutex::ForkMutex() { all().push_back(this); }

bool thread_was_forked() { return registered && forked; }

}  // namespace efft
