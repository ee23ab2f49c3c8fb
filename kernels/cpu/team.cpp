#include <system_error>
#include <thread>

#include "efft/cpu/parallel.h"

namespace efft::cpu {

void Team::run_with_fresh_threads(int threads, const std::function<void(int thread)>& join) {
  std::vector<std::thread> others;
  try {
    for (int thread = 1; thread < threads; ++thread) others.emplace_back(join, thread);
  } catch (const std::system_error&) {
    // The system gives no more threads; a phase is over when its tasks are done, whoever does them.
  }
  join(0);
  for (std::thread& other : others) other.join();
}

}  // namespace efft::cpu
