// Vec on AVX-512 (F, BW, VL, DQ).
#pragma once

#include <immintrin.h>

#include "efft/cpu/types.h"

namespace efft::cpu {
namespace {

using Vec = __m512;
constexpr int kWidth = 16;

inline __mmask16 first_lanes(int64_t count) { return static_cast<__mmask16>((1u << count) - 1u); }

inline Vec splat(float value) { return _mm512_set1_ps(value); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec absolute(Vec a) { return _mm512_abs_ps(a); }
inline Vec round_to_integer(Vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a * 2^n for integral n; underflows to zero gradually.
inline Vec scale_by_power(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }
inline Vec copy_sign(Vec magnitude, Vec sign) {
  const __m512i mask = _mm512_set1_epi32(INT32_MIN);
  return _mm512_castsi512_ps(
      _mm512_ternarylogic_epi32(mask, _mm512_castps_si512(sign), _mm512_castps_si512(magnitude), 0xca));
}
inline float reduce_add(Vec a) { return _mm512_reduce_add_ps(a); }
inline float reduce_max(Vec a) { return _mm512_reduce_max_ps(a); }

inline Vec widen(__m256i bf16_bits) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16_bits), 16));
}

inline __m256i narrow(Vec a) {
#if defined(__AVX512BF16__)
  return (__m256i)_mm512_cvtneps_pbh(a);
#else
  const __m512i bits = _mm512_castps_si512(a);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
  const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(rounded, nan, quiet), 16));
#endif
}

// Lanes of b whose number has this bit, the others of a.
template <int bit>
inline Vec select_lanes(Vec a, Vec b) {
  constexpr __mmask16 mask = bit == 1 ? 0xaaaa : bit == 2 ? 0xcccc : bit == 4 ? 0xf0f0 : 0xff00;
  return _mm512_mask_mov_ps(a, mask, b);
}

// Lanes from[at[i]].
inline Vec gather(const float* from, const int32_t* at) {
  return _mm512_i32gather_ps(_mm512_loadu_si512(at), from, sizeof(float));
}
inline Vec load(const float* from) { return _mm512_loadu_ps(from); }
inline Vec load(const bf16* from) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))); }
inline Vec load(const half* from) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}
inline Vec load_part(const float* from, int64_t count) { return _mm512_maskz_loadu_ps(first_lanes(count), from); }
inline Vec load_part(const bf16* from, int64_t count) {
  return widen(_mm256_maskz_loadu_epi16(first_lanes(count), from));
}
inline Vec load_part(const half* from, int64_t count) {
  return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(count), from));
}

inline void store(float* to, Vec a) { _mm512_storeu_ps(to, a); }
inline void store(bf16* to, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow(a)); }
inline void store(half* to, Vec a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
inline void store_part(float* to, Vec a, int64_t count) { _mm512_mask_storeu_ps(to, first_lanes(count), a); }
inline void store_part(bf16* to, Vec a, int64_t count) { _mm256_mask_storeu_epi16(to, first_lanes(count), narrow(a)); }
inline void store_part(half* to, Vec a, int64_t count) {
  _mm256_mask_storeu_epi16(to, first_lanes(count), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

}  // namespace
}  // namespace efft::cpu
