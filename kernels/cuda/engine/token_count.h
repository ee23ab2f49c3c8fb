// How the host learns the number of tokens without waiting for the stream: the device writes it into host memory.
#pragma once

#include "efft/cuda/rows/unpad.cuh"

namespace efft::cuda {

// One word that the device writes and the host polls. For one call at a time.
class TokenCount {
 public:
  TokenCount() = default;
  ~TokenCount();
  TokenCount(const TokenCount&) = delete;
  TokenCount& operator=(const TokenCount&) = delete;

  // What to hand to unpad. Throws std::runtime_error when there is no pinned memory.
  TokenReport expect();

  // The number that the kernel given the last report wrote; blocks until it has. `stream` is the kernel's. Throws
  // std::runtime_error when the stream failed or ran dry without a number.
  int wait(cudaStream_t stream) const;

 private:
  bool arrived(int* tokens) const;

  TokenReport report_;
};

}  // namespace efft::cuda
