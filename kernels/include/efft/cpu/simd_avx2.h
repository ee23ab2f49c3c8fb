// Vec on AVX2 with FMA and F16C.
#pragma once

#include <immintrin.h>

#include "efft/cpu/types.h"

namespace efft::cpu {
namespace {

using Vec = __m256;
constexpr int kWidth = 8;

inline Vec splat(float value) { return _mm256_set1_ps(value); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec absolute(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline Vec round_to_integer(Vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a * 2^n for integral n up to 127; below -126 it gives zero, also where n leaves the integers' range.
inline Vec scale_by_power(Vec a, Vec n) {
  const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  const __m256i power = _mm256_slli_epi32(_mm256_max_epi32(biased, _mm256_setzero_si256()), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(power));
}
inline Vec copy_sign(Vec magnitude, Vec sign) {
  const Vec mask = _mm256_set1_ps(-0.0f);
  return _mm256_or_ps(_mm256_and_ps(mask, sign), _mm256_andnot_ps(mask, magnitude));
}

inline float reduce_add(Vec a) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float reduce_max(Vec a) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

// Lanes of b whose number has this bit, the others of a.
template <int bit>
inline Vec select_lanes(Vec a, Vec b) {
  return _mm256_blend_ps(a, b, bit == 1 ? 0xaa : bit == 2 ? 0xcc : 0xf0);
}

// Lanes from[at[i]].
inline Vec gather(const float* from, const int32_t* at) {
  return _mm256_i32gather_ps(from, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)), sizeof(float));
}
inline Vec load(const float* from) { return _mm256_loadu_ps(from); }
inline Vec load(const bf16* from) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
inline Vec load(const half* from) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))); }

inline void store(float* to, Vec a) { _mm256_storeu_ps(to, a); }
inline void store(bf16* to, Vec a) {
  const __m256i bits = _mm256_castps_si256(a);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
  const __m256i top = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(top, top), 0x08);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_castsi256_si128(packed));
}
inline void store(half* to, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

template <typename T>
inline Vec load_part(const T* from, int64_t count) {
  T lanes[kWidth] = {};
  std::memcpy(lanes, from, count * sizeof(T));
  return load(lanes);
}
template <typename T>
inline void store_part(T* to, Vec a, int64_t count) {
  T lanes[kWidth];
  store(lanes, a);
  std::memcpy(to, lanes, count * sizeof(T));
}

}  // namespace
}  // namespace efft::cpu
