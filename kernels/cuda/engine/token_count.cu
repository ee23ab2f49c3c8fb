#include <stdexcept>
#include <thread>

#include "engine.h"
#include "token_count.h"

namespace efft::cuda {

// A look at the word costs nanoseconds, a question to the driver more than a microsecond.
constexpr int kLooksPerQuery = 1000;

TokenCount::~TokenCount() { cudaFreeHost(report_.word); }

TokenReport TokenCount::expect() {
  if (report_.word == nullptr) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, sizeof *report_.word, cudaHostAllocMapped | cudaHostAllocPortable),
          "allocating pinned memory");
    report_.word = static_cast<uint64_t*>(memory);
    *report_.word = 0;
  }
  ++report_.serial;
  return report_;
}

bool TokenCount::arrived(int* tokens) const {
  const uint64_t word = *static_cast<const volatile uint64_t*>(report_.word);
  *tokens = static_cast<int>(word & 0xffffffffu);
  return word >> 32 == report_.serial;
}

int TokenCount::wait(cudaStream_t stream) const {
  int tokens = 0;
  while (true) {
    for (int look = 0; look < kLooksPerQuery; ++look) {
      if (arrived(&tokens)) return tokens;
    }
    const cudaError_t status = cudaStreamQuery(stream);
    if (status == cudaErrorNotReady) {
      std::this_thread::yield();
      continue;
    }
    check(status, "counting tokens");
    if (arrived(&tokens)) return tokens;  // written between the last look and the question
    throw std::runtime_error("efft: counting tokens failed: the device left no number");
  }
}

}  // namespace efft::cuda
