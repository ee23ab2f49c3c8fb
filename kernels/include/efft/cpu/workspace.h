// Scratch memory that a thread keeps between calls.
#pragma once

#include <cstddef>
#include <cstdint>

namespace efft::cpu {

// Hands out pieces of one block that only ever grows: fresh pages from the system would cost a call more than its
// arithmetic. Big blocks ask for huge pages.
class Workspace {
 public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace();

  // The block, at least `bytes` long and aligned to a cache line; earlier content is lost when it grows.
  char* reserve(size_t bytes);

  // The calling thread's own workspace.
  static Workspace& mine();

 private:
  char* block_ = nullptr;
  size_t bytes_ = 0;
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
