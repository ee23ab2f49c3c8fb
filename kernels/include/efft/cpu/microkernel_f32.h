// The fp32 register tile: R rows of a times N vectors of b's columns, the whole depth in registers.
#pragma once

#include "efft/cpu/ahead.h"
#include "efft/cpu/simd.h"

namespace efft::cpu {
namespace {

// c[R][N * kWidth] (stride c_stride) = a[R][depth] b[depth][N * kWidth], or += where `accumulate`.
// b is read at b_stride elements per step of the depth.
template <int R, int N>
inline void tile_f32(const float* a, int64_t a_stride, const float* b, int64_t b_stride, int64_t depth, float* c,
                     int64_t c_stride, bool accumulate, Ahead ahead = {}) {
  Vec sum[R][N];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[r][n] = splat(0.0f);
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    Vec column[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) column[n] = load(b + n * kWidth);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const Vec element = splat(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[r][n] = fma(element, column[n], sum[r][n]);
    }
    b += b_stride;
  };
  ahead.each(depth, step);
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
