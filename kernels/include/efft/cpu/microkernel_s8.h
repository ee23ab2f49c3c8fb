// The 8-bit register tile on AVX512-VNNI: unsigned activations times signed weights, four along the depth at a time.
#pragma once

#if defined(__AVX512VNNI__)

#include "efft/cpu/ahead.h"
#include "efft/cpu/simd.h"

namespace efft::cpu {
namespace {

// c[R][N * kWidth] (stride c_stride) = a[R][4 quads] b, or += where `accumulate`; b holds [quad][column][4]. Sums are
// exact: even 2^17 products of 8 by 8 bits stay below 2^31.
template <int R, int N>
inline void tile_s8(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t quads, int32_t* c, int64_t c_stride,
                    bool accumulate, Ahead ahead = {}) {
  __m512i sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = _mm512_setzero_si512();
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    __m512i column[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) column[n] = _mm512_loadu_si512(b + 4 * n * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      int32_t quad;
      std::memcpy(&quad, a + r * a_stride + 4 * k, sizeof quad);
      const __m512i element = _mm512_set1_epi32(quad);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r][n] = _mm512_dpbusd_epi32(sum[r][n], element, column[n]);
    }
    b += 4 * N * kWidth;
  };
  ahead.each(quads, step);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      int32_t* to = c + r * c_stride + n * kWidth;
      _mm512_storeu_si512(to, accumulate ? _mm512_add_epi32(_mm512_loadu_si512(to), sum[r][n]) : sum[r][n]);
    }
}

}  // namespace
}  // namespace efft::cpu

#endif
