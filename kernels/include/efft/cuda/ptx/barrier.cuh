// Barriers: mbarriers in shared memory, and the numbered barriers of a block.
#pragma once

#include "efft/cuda/ptx/shared.cuh"

namespace efft::cuda::ptx {

__device__ __forceinline__ void mbarrier_init(Shared barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier.address), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the other blocks of the cluster and to the copy engine.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(Shared barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier.address) : "memory");
}

// Arrives, and adds to the bytes that the phase waits for.
__device__ __forceinline__ void mbarrier_arrive_expect_tx(Shared barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier.address), "r"(bytes) : "memory");
}

// Arrives at the barrier that lies at the same shared-memory offset in block `rank` of the cluster. It orders no writes
// of this thread for that block: with cluster scope each arrival would cost a fence over the whole device.
__device__ __forceinline__ void mbarrier_arrive_at(Shared barrier, uint32_t rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(barrier.address),
      "r"(rank)
      : "memory");
}

// Waits for the end of the phase of the given parity.
__device__ __forceinline__ void mbarrier_wait(Shared barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "waiting:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra waiting;\n"
      "}" ::"r"(barrier.address),
      "r"(parity)
      : "memory");
}

// A barrier among `threads` threads of one block; `id` 1 to 15, since 0 is __syncthreads.
__device__ __forceinline__ void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// The same without waiting.
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

}  // namespace efft::cuda::ptx
