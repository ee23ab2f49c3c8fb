// Scratch memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <cstdint>

namespace efft::cpu {

// One block of memory that lasts from call to call: fresh pages from the system would cost a call more than its
// arithmetic. Big blocks ask for huge pages. It grows at once and shrinks when kCalls calls in a row have needed less
// than half of it, so that one long text does not hold its memory for ever.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // The block, at least `bytes` long and aligned to a cache line; what it held is lost.
  char* reserve(size_t bytes);
  size_t bytes() const { return bytes_; }
  void release();

 private:
  static constexpr int kCalls = 64;

  void allocate(size_t bytes);

  char* block_ = nullptr;
  size_t bytes_ = 0;
  size_t most_ = 0;  // asked for in the last `calls_` calls
  int calls_ = 0;
};

// The calling thread's own workspace while this exists. Workspaces of threads that have not called for kIdleSeconds are
// released when another thread's call ends: a server's idle threads hold nothing.
class ThreadWorkspace {
 public:
  static constexpr int kIdleSeconds = 10;

  ThreadWorkspace();
  ~ThreadWorkspace();
  ThreadWorkspace(const ThreadWorkspace&) = delete;
  ThreadWorkspace& operator=(const ThreadWorkspace&) = delete;

  operator Workspace&();
  char* reserve(size_t bytes);

  // Bytes that the workspaces of threads outside a call hold.
  static size_t held();
  // Releases those of threads without a call for `seconds`.
  static void trim(double seconds);

 private:
  struct Entry;
  class Registry;
  static Registry& registry();
  Entry& entry_;
};

// Asks the system to back [block, block + bytes) with huge pages; a hint, and harmless where it is not understood.
void advise_huge_pages(void* block, size_t bytes);

// Computes offsets of several arrays that share one block.
class Carver {
 public:
  // Offset of an array of `bytes`, each at its own cache line.
  int64_t take(int64_t bytes) {
    const int64_t at = used_;
    used_ += (bytes + 63) / 64 * 64;
    return at;
  }
  int64_t used() const { return used_; }

 private:
  int64_t used_ = 0;
};

}  // namespace efft::cpu
