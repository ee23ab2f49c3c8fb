// Hopper's warpgroup matrix product, D[64, N] (+)= A[64, K] B, in fp32, for the widths N that the kernels use.
//
// An instruction takes kStepBytes of the depth, 16 elements of two bytes: kernels count their depth in bytes, so that a
// type is a row of EFFT_WGMMA_WIDTHS at the end. A thread's share of D: rows lane / 4 and lane / 4 + 8 of its warp's
// 16, and of each 8 columns the two from 2 * (lane % 4), as four floats (row, row, row + 8, row + 8).
// Source: NVIDIA's PTX ISA 9.0, "Asynchronous warpgroup level matrix instructions".
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/ptx/shared.cuh"

namespace efft::cuda::ptx {

constexpr int kWgmmaRows = 64;
constexpr int kStepBytes = 32;       // of the depth, that one instruction takes
constexpr int kSwizzledBytes = 128;  // of a row in the widest swizzle

// Describes a tile in shared memory in the copy engine's 128-byte swizzle, a row of 128 bytes for each row of the
// matrix, from an address divisible by 1024: address, distance between groups of 8 rows (1024 bytes), all in units of
// 16 bytes. A step of kStepBytes along the depth adds 2.
__device__ __forceinline__ uint64_t tile_descriptor(const void* tile) {
  constexpr uint64_t kLeading = 1, kGroup = 8 * kSwizzledBytes / 16, kSwizzle128 = 1;
  return (static_cast<uint64_t>(shared_address(tile)) & 0x3ffff) >> 4 | kLeading << 16 | kGroup << 32 |
         kSwizzle128 << 62;
}

// Orders earlier accesses of accumulators and A registers before the products that follow.
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void wgmma_commit_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING committed groups are still running.
template <int PENDING>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Keeps the compiler from moving uses of an accumulator across this point, since it does not know that wgmma writes
// registers after the instruction has been issued.
template <int GROUPS>
__device__ __forceinline__ void pin(float (&accumulator)[GROUPS][4]) {
#pragma unroll
  for (int group = 0; group < GROUPS; ++group)
#pragma unroll
    for (int i = 0; i < 4; ++i) asm volatile("" : "+f"(accumulator[group][i])::"memory");
}

// shared(): A and B in shared memory, B's rows the columns of D. registers<TRANSPOSED>(): A in registers; with
// TRANSPOSED, B's rows are steps of the sum.
template <typename T, int N>
struct Wgmma;

#define EFFT_REGS4 "%0,%1,%2,%3"
#define EFFT_REGS8 EFFT_REGS4 ",%4,%5,%6,%7"
#define EFFT_REGS12 EFFT_REGS8 ",%8,%9,%10,%11"
#define EFFT_REGS16 EFFT_REGS12 ",%12,%13,%14,%15"
#define EFFT_REGS24 EFFT_REGS16 ",%16,%17,%18,%19,%20,%21,%22,%23"
#define EFFT_REGS32 EFFT_REGS24 ",%24,%25,%26,%27,%28,%29,%30,%31"
#define EFFT_REGS36 EFFT_REGS32 ",%32,%33,%34,%35"
#define EFFT_REGS48 EFFT_REGS36 ",%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
#define EFFT_REGS64 EFFT_REGS48 ",%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define EFFT_REGS80 EFFT_REGS64 ",%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79"
#define EFFT_REGS88 EFFT_REGS80 ",%80,%81,%82,%83,%84,%85,%86,%87"
#define EFFT_REGS96 EFFT_REGS88 ",%88,%89,%90,%91,%92,%93,%94,%95"
#define EFFT_REGS112 EFFT_REGS96 ",%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111"
#define EFFT_REGS128 EFFT_REGS112 ",%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127"

#define EFFT_SUM4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define EFFT_SUM8(d, i) EFFT_SUM4(d, i), EFFT_SUM4(d, i + 4)
#define EFFT_SUM12(d, i) EFFT_SUM8(d, i), EFFT_SUM4(d, i + 8)
#define EFFT_SUM16(d, i) EFFT_SUM12(d, i), EFFT_SUM4(d, i + 12)
#define EFFT_SUM24(d, i) EFFT_SUM12(d, i), EFFT_SUM12(d, i + 12)
#define EFFT_SUM32(d, i) EFFT_SUM24(d, i), EFFT_SUM8(d, i + 24)
#define EFFT_SUM36(d, i) EFFT_SUM32(d, i), EFFT_SUM4(d, i + 32)
#define EFFT_SUM48(d, i) EFFT_SUM24(d, i), EFFT_SUM24(d, i + 24)
#define EFFT_SUM64(d, i) EFFT_SUM48(d, i), EFFT_SUM12(d, i + 48), EFFT_SUM4(d, i + 60)
#define EFFT_SUM88(d, i) EFFT_SUM64(d, i), EFFT_SUM24(d, i + 64)
#define EFFT_SUM96(d, i) EFFT_SUM48(d, i), EFFT_SUM48(d, i + 48)
#define EFFT_SUM128(d, i) EFFT_SUM64(d, i), EFFT_SUM64(d, i + 64)

// REGS = N / 2 accumulators come first among the operands; P0.. name the operands behind them.
#define EFFT_WGMMA(T, PTX_TYPE, N, REGS, P0, P1, P2, P3, P4, P5, P6)                                                \
  template <>                                                                                                       \
  struct Wgmma<T, N> {                                                                                              \
    static __device__ __forceinline__ void shared(float (&d)[REGS], uint64_t a, uint64_t b, bool accumulate) {      \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2                                                           \
                   ", 0;\n"                                                                                         \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX_TYPE "." PTX_TYPE " {" EFFT_REGS##REGS     \
                   "}, " P0 ", " P1 ", p, 1, 1, 0, 0;\n}"                                                           \
                   : EFFT_SUM##REGS(d, 0)                                                                           \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                            \
    }                                                                                                               \
    template <bool TRANSPOSED>                                                                                      \
    static __device__ __forceinline__ void registers(float (&groups)[N / 8][4], const uint32_t (&a)[4], uint64_t b, \
                                                     bool accumulate) {                                             \
      float (&d)[REGS] = reinterpret_cast<float (&)[REGS]>(groups);                                                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P5                                                           \
                   ", 0;\n"                                                                                         \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." PTX_TYPE "." PTX_TYPE " {" EFFT_REGS##REGS     \
                   "}, {" P0 "," P1 "," P2 "," P3 "}, " P4 ", p, 1, 1, " P6 ";\n}"                                  \
                   : EFFT_SUM##REGS(d, 0)                                                                           \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(static_cast<int>(accumulate)),         \
                     "n"(static_cast<int>(TRANSPOSED)));                                                            \
    }                                                                                                               \
  };

#define EFFT_WGMMA_WIDTHS(T, PTX_TYPE)                                                 \
  EFFT_WGMMA(T, PTX_TYPE, 8, 4, "%4", "%5", "%6", "%7", "%8", "%9", "%10")             \
  EFFT_WGMMA(T, PTX_TYPE, 16, 8, "%8", "%9", "%10", "%11", "%12", "%13", "%14")        \
  EFFT_WGMMA(T, PTX_TYPE, 24, 12, "%12", "%13", "%14", "%15", "%16", "%17", "%18")     \
  EFFT_WGMMA(T, PTX_TYPE, 32, 16, "%16", "%17", "%18", "%19", "%20", "%21", "%22")     \
  EFFT_WGMMA(T, PTX_TYPE, 48, 24, "%24", "%25", "%26", "%27", "%28", "%29", "%30")     \
  EFFT_WGMMA(T, PTX_TYPE, 64, 32, "%32", "%33", "%34", "%35", "%36", "%37", "%38")     \
  EFFT_WGMMA(T, PTX_TYPE, 72, 36, "%36", "%37", "%38", "%39", "%40", "%41", "%42")     \
  EFFT_WGMMA(T, PTX_TYPE, 96, 48, "%48", "%49", "%50", "%51", "%52", "%53", "%54")     \
  EFFT_WGMMA(T, PTX_TYPE, 128, 64, "%64", "%65", "%66", "%67", "%68", "%69", "%70")    \
  EFFT_WGMMA(T, PTX_TYPE, 176, 88, "%88", "%89", "%90", "%91", "%92", "%93", "%94")    \
  EFFT_WGMMA(T, PTX_TYPE, 192, 96, "%96", "%97", "%98", "%99", "%100", "%101", "%102") \
  EFFT_WGMMA(T, PTX_TYPE, 256, 128, "%128", "%129", "%130", "%131", "%132", "%133", "%134")
EFFT_WGMMA_WIDTHS(__half, "f16")
EFFT_WGMMA_WIDTHS(__nv_bfloat16, "bf16")
#undef EFFT_WGMMA_WIDTHS
#undef EFFT_WGMMA

}  // namespace efft::cuda::ptx
