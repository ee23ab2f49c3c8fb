#include "efft/cpu/workspace.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <list>
#include <mutex>
#include <new>

#include "efft/fork.h"

namespace efft::cpu {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
}  // namespace

void advise_huge_pages(void* block, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const size_t begin = (reinterpret_cast<size_t>(block) + kHugePage - 1) / kHugePage * kHugePage;
  const size_t end = (reinterpret_cast<size_t>(block) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Workspace::~Workspace() { release(); }

void Workspace::release() {
  std::free(block_);
  block_ = nullptr;
  bytes_ = most_ = 0;
  calls_ = 0;
}

char* Workspace::reserve(size_t bytes) {
  most_ = std::max(most_, bytes);
  if (bytes > bytes_) {
    allocate(bytes);
  } else if (++calls_ == kCalls) {
    if (most_ < bytes_ / 2) allocate(most_);
    most_ = bytes;
    calls_ = 0;
  }
  return block_;
}

void Workspace::allocate(size_t bytes) {
  release();
  const size_t alignment = bytes >= kHugePage ? kHugePage : 4096;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  block_ = static_cast<char*>(std::aligned_alloc(alignment, rounded));
  if (!block_) throw std::bad_alloc();
  bytes_ = rounded;
  most_ = bytes;
  advise_huge_pages(block_, bytes_);
}

struct ThreadWorkspace::Entry {
  Workspace workspace;
  bool in_use = false;  // these two under the registry's mutex
  double last_used = 0;
};

// All threads' workspaces. Its mutex is held for moments only: a call marks its entry and works without it.
class ThreadWorkspace::Registry {
 public:
  Entry& mine() {
    thread_local Holder holder{*this, add()};
    return *holder.entry;
  }

  void begin(Entry& entry) {
    const std::lock_guard<ForkMutex> lock(mutex_);
    entry.in_use = true;
  }

  void end(Entry& entry) {
    const double time = now();
    const std::lock_guard<ForkMutex> lock(mutex_);
    entry.in_use = false;
    entry.last_used = time;
    if (time < next_trim_) return;
    next_trim_ = time + 1;
    release_unused(time - kIdleSeconds);
  }

  void trim(double seconds) {
    const std::lock_guard<ForkMutex> lock(mutex_);
    release_unused(now() - seconds);
  }

  size_t held() {
    const std::lock_guard<ForkMutex> lock(mutex_);
    size_t sum = 0;
    for (const Entry& entry : entries_) sum += entry.in_use ? 0 : entry.workspace.bytes();
    return sum;
  }

 private:
  using Place = std::list<Entry>::iterator;

  // Leaves with its thread.
  struct Holder {
    Registry& registry;
    Place entry;
    ~Holder() {
      const std::lock_guard<ForkMutex> lock(registry.mutex_);
      registry.entries_.erase(entry);
    }
  };

  Place add() {
    const std::lock_guard<ForkMutex> lock(mutex_);
    return entries_.emplace(entries_.end());
  }

  void release_unused(double since) {
    for (Entry& entry : entries_) {
      if (!entry.in_use && entry.last_used <= since) entry.workspace.release();
    }
  }

  ForkMutex mutex_;
  std::list<Entry> entries_;
  double next_trim_ = 0;
};

ThreadWorkspace::Registry& ThreadWorkspace::registry() {
  static auto* registry = new Registry;  // never destroyed: threads may outlive statics
  return *registry;
}

ThreadWorkspace::ThreadWorkspace() : entry_(registry().mine()) { registry().begin(entry_); }
ThreadWorkspace::~ThreadWorkspace() { registry().end(entry_); }
ThreadWorkspace::operator Workspace&() { return entry_.workspace; }
char* ThreadWorkspace::reserve(size_t bytes) { return entry_.workspace.reserve(bytes); }
size_t ThreadWorkspace::held() { return registry().held(); }
void ThreadWorkspace::trim(double seconds) { registry().trim(seconds); }

}  // namespace efft::cpu
