// The warpgroup matrix product (ptx/wgmma.cuh) of operands of eight bits, both in shared memory: e4m3 with sums in
// fp32, unsigned by signed integers with exact sums. An instruction takes kStepBytes of the depth here, too: 32
// elements.
#pragma once

#include <cuda_fp8.h>

#include "efft/cuda/ptx/wgmma.cuh"

namespace efft::cuda::ptx {

#define EFFT_SUMS4(c, d, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3])
#define EFFT_SUMS16(c, d, i) \
  EFFT_SUMS4(c, d, i), EFFT_SUMS4(c, d, i + 4), EFFT_SUMS4(c, d, i + 8), EFFT_SUMS4(c, d, i + 12)
#define EFFT_SUMS48(c, d, i) EFFT_SUMS16(c, d, i), EFFT_SUMS16(c, d, i + 16), EFFT_SUMS16(c, d, i + 32)
#define EFFT_SUMS64(c, d, i) EFFT_SUMS48(c, d, i), EFFT_SUMS16(c, d, i + 48)
#define EFFT_SUMS88(c, d, i) \
  EFFT_SUMS64(c, d, i), EFFT_SUMS16(c, d, i + 64), EFFT_SUMS4(c, d, i + 80), EFFT_SUMS4(c, d, i + 84)
#define EFFT_SUMS96(c, d, i) EFFT_SUMS48(c, d, i), EFFT_SUMS48(c, d, i + 48)
#define EFFT_SUMS128(c, d, i) EFFT_SUMS64(c, d, i), EFFT_SUMS64(c, d, i + 64)

// SCALES: of floating-point operands, + in front of both.
#define EFFT_WGMMA_EIGHT(T, SUM, CONSTRAINT, PTX_TYPES, SCALES, N, REGS, P0, P1, P2)                                \
  template <>                                                                                                       \
  struct Wgmma<T, N> {                                                                                              \
    static __device__ __forceinline__ void shared(SUM (&d)[REGS], uint64_t a, uint64_t b, bool accumulate) {        \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " P2                                                           \
                   ", 0;\n"                                                                                         \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32." PTX_TYPES " {" EFFT_REGS##REGS "}, " P0 ", " P1    \
                                                                                                ", p" SCALES ";\n}" \
                   : EFFT_SUMS##REGS(CONSTRAINT, d, 0)                                                              \
                   : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));                                            \
    }                                                                                                               \
  };

#define EFFT_WGMMA_EIGHT_WIDTHS(T, SUM, CONSTRAINT, PTX_TYPES, SCALES)                  \
  EFFT_WGMMA_EIGHT(T, SUM, CONSTRAINT, PTX_TYPES, SCALES, 96, 48, "%48", "%49", "%50")  \
  EFFT_WGMMA_EIGHT(T, SUM, CONSTRAINT, PTX_TYPES, SCALES, 128, 64, "%64", "%65", "%66") \
  EFFT_WGMMA_EIGHT(T, SUM, CONSTRAINT, PTX_TYPES, SCALES, 176, 88, "%88", "%89", "%90") \
  EFFT_WGMMA_EIGHT(T, SUM, CONSTRAINT, PTX_TYPES, SCALES, 192, 96, "%96", "%97", "%98") \
  EFFT_WGMMA_EIGHT(T, SUM, CONSTRAINT, PTX_TYPES, SCALES, 256, 128, "%128", "%129", "%130")
EFFT_WGMMA_EIGHT_WIDTHS(__nv_fp8_e4m3, float, "+f", "f32.e4m3.e4m3", ", 1, 1")
EFFT_WGMMA_EIGHT_WIDTHS(uint8_t, int32_t, "+r", "s32.u8.s8", "")
#undef EFFT_WGMMA_EIGHT_WIDTHS
#undef EFFT_WGMMA_EIGHT

}  // namespace efft::cuda::ptx
