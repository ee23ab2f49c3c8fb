// The PTX instructions of sm_90a that attention uses, by their names in the PTX ISA manual: wgmma, mbarrier and the
// tensor copy.
#pragma once

#include <cuda.h>

#include "efft/cuda/attention_fragments.cuh"

namespace efft::cuda::ptx {

__device__ inline void mbarrier_init(uint32_t barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ inline void fence_mbarrier_init() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ inline void mbarrier_arrive_expect_tx(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of the given parity.
__device__ inline void mbarrier_wait(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "waiting:\n"
      "mbarrier.try_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra waiting;\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Copies the map's box at five coordinates, innermost first, to shared memory and completes its bytes on the barrier.
__device__ inline void cp_async_bulk_tensor(uint32_t destination, const CUtensorMap* map, int c0, int c1, int c2,
                                            int c3, int c4, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], "
      "[%7];" ::"r"(destination),
      "l"(map), "r"(c0), "r"(c1), "r"(c2), "r"(c3), "r"(c4), "r"(barrier)
      : "memory");
}

// Copies contiguous bytes, a multiple of 16, to shared memory and completes them on the barrier.
__device__ inline void cp_async_bulk(uint32_t destination, const void* source, int bytes, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(destination),
      "l"(source), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ inline void prefetch_tensormap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Makes this thread's ordinary writes to shared memory visible to wgmma and the copy engine.
__device__ inline void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ inline void store_zeros(uint32_t address) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(address), "r"(0) : "memory");
}

__device__ inline void store_shared(uint32_t address, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}

__device__ inline void load_shared(float (&v)[4], uint32_t address) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(address)
               : "memory");
}

// A barrier among `threads` threads of one block.
__device__ inline void barrier_sync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

template <int kPending>
__device__ inline void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of an accumulator across this point, since it does not know that wgmma writes
// registers after the instruction has been issued.
template <int kGroups>
__device__ inline void pin(float (&accumulator)[kGroups][4]) {
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(accumulator[group][i])::"memory");
  }
}

#define EFFT_ROW4(g) "+f"(d[g][0]), "+f"(d[g][1]), "+f"(d[g][2]), "+f"(d[g][3])
#define EFFT_ROW16(g) EFFT_ROW4(g), EFFT_ROW4(g + 1), EFFT_ROW4(g + 2), EFFT_ROW4(g + 3)
#define EFFT_ROW32(g) EFFT_ROW16(g), EFFT_ROW16(g + 4)

// d (+)= a b with a from registers and b from shared memory; kTransposed: b's rows are steps of the sum, not columns.
template <typename T, int kColumns, bool kTransposed>
struct Wgmma;

#define EFFT_WGMMA(T, type, columns, accumulators, registers, a0, a1, a2, a3, descriptor, accumulate, transposed)  \
  template <bool kTransposed>                                                                                      \
  struct Wgmma<T, columns, kTransposed> {                                                                          \
    __device__ static void issue(float (&d)[columns / 8][4], const uint32_t (&a)[4], uint64_t b, bool add) {       \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" accumulate                                                 \
                   ", 0;\n"                                                                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #columns "k16.f32." type "." type " {" registers "}, {%" a0 \
                   ", %" a1 ", %" a2 ", %" a3 "}, %" descriptor ", p, 1, 1, %" transposed ";\n}\n"                 \
                   : accumulators                                                                                  \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int(add)), "n"(int(kTransposed)));    \
    }                                                                                                              \
  };

#define EFFT_REGISTERS16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define EFFT_REGISTERS32 \
  EFFT_REGISTERS16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define EFFT_REGISTERS64                                                                              \
  EFFT_REGISTERS32                                                                                    \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, " \
  "%51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define EFFT_ACCUMULATORS16 EFFT_ROW16(0)
#define EFFT_ACCUMULATORS32 EFFT_ROW32(0)
#define EFFT_ACCUMULATORS64 EFFT_ROW32(0), EFFT_ROW32(8)
#define EFFT_WGMMA_COLUMNS(T, type)                                                                        \
  EFFT_WGMMA(T, type, 32, EFFT_ACCUMULATORS16, EFFT_REGISTERS16, "16", "17", "18", "19", "20", "21", "22") \
  EFFT_WGMMA(T, type, 64, EFFT_ACCUMULATORS32, EFFT_REGISTERS32, "32", "33", "34", "35", "36", "37", "38") \
  EFFT_WGMMA(T, type, 128, EFFT_ACCUMULATORS64, EFFT_REGISTERS64, "64", "65", "66", "67", "68", "69", "70")

EFFT_WGMMA_COLUMNS(__half, "f16")
EFFT_WGMMA_COLUMNS(__nv_bfloat16, "bf16")

#undef EFFT_WGMMA_COLUMNS
#undef EFFT_ACCUMULATORS64
#undef EFFT_ACCUMULATORS32
#undef EFFT_ACCUMULATORS16
#undef EFFT_REGISTERS64
#undef EFFT_REGISTERS32
#undef EFFT_REGISTERS16
#undef EFFT_WGMMA
#undef EFFT_ROW32
#undef EFFT_ROW16
#undef EFFT_ROW4

}  // namespace efft::cuda::ptx
