// Clusters of thread blocks.
#pragma once

#include "efft/cuda/ptx/shared.cuh"

namespace efft::cuda::ptx {

__device__ __forceinline__ uint32_t cluster_ctarank() {
  uint32_t rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// Where `here` lies in block `rank` of the cluster.
__device__ __forceinline__ uint32_t mapa(Shared here, uint32_t rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here.address), "r"(rank));
  return there;
}

// Writes two floats into a block of the cluster and counts their 8 bytes at a barrier of that block. Whoever sees the
// barrier complete sees the floats: no fence, unlike a plain store and an arrival behind it.
__device__ __forceinline__ void st_async(uint32_t to, float2 values, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "f"(values.x), "f"(values.y), "r"(barrier)
               : "memory");
}

// Execution only: writes before it are not ordered for the other blocks (fence_mbarrier_init orders initialised
// barriers).
__device__ __forceinline__ void barrier_cluster_sync() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

}  // namespace efft::cuda::ptx
