// The two rearrangements that attention's operands need.
#pragma once

#include "efft/cpu/simd.h"

namespace efft::cpu {
namespace {

#if defined(__AVX512F__)
// A 16 x 16 block of words; rows and columns beyond the counts read as zero, all 16 columns of `words` rows are
// written.
inline void transpose_block(const uint32_t* from, int64_t stride, int64_t rows, int64_t words, uint32_t* out,
                            int64_t out_stride) {
  __m512i r[16], t[16];
  const __mmask16 mask = words >= 16 ? 0xffff : first_lanes(words);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    r[i] = i < rows ? _mm512_maskz_loadu_epi32(mask, from + i * stride) : _mm512_setzero_si512();
  }
  // Two rounds within 128-bit lanes, two rounds of whole lanes.
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0x88);
    t[4 + i] = _mm512_shuffle_i32x4(r[i], r[4 + i], 0xdd);
    t[8 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0x88);
    t[12 + i] = _mm512_shuffle_i32x4(r[8 + i], r[12 + i], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0x88);
    r[4 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0x88);
    r[8 + i] = _mm512_shuffle_i32x4(t[i], t[8 + i], 0xdd);
    r[12 + i] = _mm512_shuffle_i32x4(t[4 + i], t[12 + i], 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    if (i < words) _mm512_storeu_si512(out + i * out_stride, r[i]);
  }
}
#endif

// out[w][n] = from[n][w] for n < rows, w < words; columns up to the next multiple of kWidth become zero.
inline void transpose_words(const uint32_t* from, int64_t stride, int64_t rows, int64_t words, uint32_t* out,
                            int64_t out_stride) {
#if defined(__AVX512F__)
  for (int64_t n = 0; n < rows; n += 16) {
    for (int64_t w = 0; w < words; w += 16) {
      transpose_block(from + n * stride + w, stride, rows - n, words - w, out + w * out_stride + n, out_stride);
    }
  }
#else
  const int64_t padded = (rows + kWidth - 1) / kWidth * kWidth;
  for (int64_t n = 0; n < padded; ++n) {
    for (int64_t w = 0; w < words; ++w) out[w * out_stride + n] = n < rows ? from[n * stride + w] : 0;
  }
#endif
}

// out[pair][column][2] from rows 2 * pair and 2 * pair + 1; an odd last row is paired with zeros.
inline void interleave_pairs(const bf16* from, int64_t stride, int64_t rows, int64_t columns, bf16* out,
                             int64_t out_columns) {
  const bf16 zero{0};
  for (int64_t row = 0; row < rows; row += 2) {
    const bf16* even = from + row * stride;
    const bf16* odd = row + 1 < rows ? even + stride : nullptr;
    bf16* to = out + row * out_columns;
    int64_t i = 0;
#if defined(__AVX512F__)
    for (; i < columns; i += kWidth) {
      const __mmask16 mask = columns - i >= kWidth ? 0xffff : first_lanes(columns - i);
      const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + i));
      const __m512i high =
          odd ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd + i)) : _mm512_setzero_si512();
      _mm512_storeu_si512(to + 2 * i, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
    }
#endif
    for (; i < columns; ++i) {
      to[2 * i] = even[i];
      to[2 * i + 1] = odd ? odd[i] : zero;
    }
  }
}

}  // namespace
}  // namespace efft::cpu
