#include "efft/cpu/workspace.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace efft::cpu {

namespace {
constexpr size_t kHugePage = size_t{2} << 20;
}

void advise_huge_pages(void* block, size_t bytes) {
#if defined(MADV_HUGEPAGE)
  const size_t begin = (reinterpret_cast<size_t>(block) + kHugePage - 1) / kHugePage * kHugePage;
  const size_t end = (reinterpret_cast<size_t>(block) + bytes) / kHugePage * kHugePage;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

Workspace::~Workspace() { std::free(block_); }

char* Workspace::reserve(size_t bytes) {
  if (bytes <= bytes_) return block_;
  std::free(block_);
  block_ = nullptr;
  bytes_ = 0;
  const size_t alignment = bytes >= kHugePage ? kHugePage : 4096;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  block_ = static_cast<char*>(std::aligned_alloc(alignment, rounded));
  if (!block_) throw std::bad_alloc();
  bytes_ = rounded;
  advise_huge_pages(block_, bytes_);
  return block_;
}

Workspace& Workspace::mine() {
  thread_local Workspace workspace;
  return workspace;
}

}  // namespace efft::cpu
