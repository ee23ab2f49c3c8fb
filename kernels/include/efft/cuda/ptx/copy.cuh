// Asynchronous copies to shared memory: by the copy engine (bulk, tensor) and on behalf of a thread (cp.async).
#pragma once

#include <cuda.h>

#include "efft/cuda/ptx/shared.cuh"

namespace efft::cuda::ptx {

// Copies the map's box at (c0, c1), innermost first, counting its bytes at the barrier.
__device__ __forceinline__ void cp_async_bulk_tensor(Shared to, const CUtensorMap* map, int c0, int c1,
                                                     Shared barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(
          to.address),
      "l"(map), "r"(barrier.address), "r"(c0), "r"(c1)
      : "memory");
}

// The same in five dimensions.
__device__ __forceinline__ void cp_async_bulk_tensor(Shared to, const CUtensorMap* map, int c0, int c1, int c2, int c3,
                                                     int c4, Shared barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
      "[%7];" ::"r"(to.address),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier.address)
      : "memory");
}

// In two dimensions into every block of the cluster whose bit is set in `blocks`, at the same offsets.
__device__ __forceinline__ void cp_async_bulk_tensor_multicast(Shared to, const CUtensorMap* map, int c0, int c1,
                                                               Shared barrier, uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
      " [%0], [%1, {%4, %5}], [%2], %3;" ::"r"(to.address),
      "l"(map), "r"(barrier.address), "h"(blocks), "r"(c0), "r"(c1)
      : "memory");
}

// Copies bytes that follow each other, a multiple of 16, both addresses too, counting them at the barrier.
__device__ __forceinline__ void cp_async_bulk(Shared to, const void* from, uint32_t bytes, Shared barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to.address),
      "l"(from), "r"(bytes), "r"(barrier.address)
      : "memory");
}

// Brings the box into the L2 cache only.
__device__ __forceinline__ void cp_async_bulk_prefetch_tensor(const CUtensorMap* map, int c0, int c1) {
  asm volatile("cp.async.bulk.prefetch.tensor.2d.L2.global [%0, {%1, %2}];" ::"l"(map), "r"(c0), "r"(c1) : "memory");
}

// Fetches the description itself ahead of the first copy that uses it.
__device__ __forceinline__ void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Makes this thread's ordinary accesses to shared memory visible to wgmma and the copy engine.
__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies BYTES (4 or 16) on behalf of this thread, or writes zeros where not `valid`.
template <int BYTES>
__device__ __forceinline__ void cp_async(Shared to, const void* from, bool valid) {
  const int bytes = valid ? BYTES : 0;
  if constexpr (BYTES == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to.address), "l"(from), "r"(bytes) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to.address), "l"(from), "r"(bytes) : "memory");
  }
}

// Two floats that another kernel has left, into registers; without `valid` these stay. The first use waits, not this.
__device__ __forceinline__ void load_if(float& first, float& second, const void* from, bool valid) {
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %3, 0;\n@p ld.global.cg.v2.f32 {%0, %1}, [%2];\n}"
               : "+f"(first), "+f"(second)
               : "l"(from), "r"(static_cast<int>(valid))
               : "memory");
}

__device__ __forceinline__ void cp_async_commit_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING committed groups of this thread's copies are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait_group() {
  asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void cp_async_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }

}  // namespace efft::cuda::ptx
