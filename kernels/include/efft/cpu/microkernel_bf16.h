// The bf16 register tile on AVX512-BF16: products of pairs along the depth, sums in fp32.
#pragma once

#if defined(__AVX512BF16__)

#include "efft/cpu/ahead.h"
#include "efft/cpu/simd.h"

namespace efft::cpu {
namespace {

// As tile_f32; depth counts pairs, b holds [pair][column][2] and b_stride counts pairs' columns.
template <int R, int N>
inline void tile_bf16(const bf16* a, int64_t a_stride, const bf16* b, int64_t b_stride, int64_t pairs, float* c,
                      int64_t c_stride, bool accumulate, Ahead ahead = {}) {
  __m512 sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = splat(0.0f);
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    __m512bh column[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) column[n] = (__m512bh)_mm512_loadu_si512(b + 2 * n * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int32_t pair;
      std::memcpy(&pair, a + r * a_stride + 2 * k, sizeof pair);
      const __m512bh element = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r][n] = _mm512_dpbf16_ps(sum[r][n], element, column[n]);
    }
    b += 2 * b_stride;
  };
  ahead.each(pairs, step);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      float* to = c + r * c_stride + n * kWidth;
      store(to, accumulate ? load(to) + sum[r][n] : sum[r][n]);
    }
}

}  // namespace
}  // namespace efft::cpu

#endif
