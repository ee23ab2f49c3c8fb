// Vec for any processor: the compiler's vector extension (NEON on aarch64, SSE2 on x86-64).
#pragma once

#include <cmath>

#include "efft/cpu/types.h"

namespace efft::cpu {
namespace {

constexpr int kWidth = 8;
using Vec = float __attribute__((vector_size(kWidth * sizeof(float))));

template <typename F>
inline Vec each_lane(F f) {
  Vec out;
  for (int i = 0; i < kWidth; ++i) out[i] = f(i);
  return out;
}

inline Vec splat(float value) {
  return each_lane([&](int) { return value; });
}
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec max(Vec a, Vec b) {
  return each_lane([&](int i) { return a[i] > b[i] ? a[i] : b[i]; });
}
inline Vec min(Vec a, Vec b) {
  return each_lane([&](int i) { return a[i] < b[i] ? a[i] : b[i]; });
}
inline Vec absolute(Vec a) {
  return each_lane([&](int i) { return std::fabs(a[i]); });
}
inline Vec round_to_integer(Vec a) {
  return each_lane([&](int i) { return std::nearbyint(a[i]); });
}
inline Vec scale_by_power(Vec a, Vec n) {
  return each_lane([&](int i) { return std::ldexp(a[i], static_cast<int>(n[i] > -200.0f ? n[i] : -200.0f)); });
}
inline Vec copy_sign(Vec magnitude, Vec sign) {
  return each_lane([&](int i) { return std::copysign(magnitude[i], sign[i]); });
}
inline float reduce_add(Vec a) {
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += a[i];
  return sum;
}
inline float reduce_max(Vec a) {
  float top = a[0];
  for (int i = 1; i < kWidth; ++i) top = a[i] > top ? a[i] : top;
  return top;
}

// Lanes of b whose number has this bit, the others of a.
template <int bit>
inline Vec select_lanes(Vec a, Vec b) {
  return each_lane([&](int i) { return i & bit ? b[i] : a[i]; });
}

// Lanes from[at[i]].
inline Vec gather(const float* from, const int32_t* at) {
  return each_lane([&](int i) { return from[at[i]]; });
}
template <typename T>
inline Vec load(const T* from) {
  return each_lane([&](int i) { return to_float(from[i]); });
}
template <typename T>
inline Vec load_part(const T* from, int64_t count) {
  return each_lane([&](int i) { return i < count ? to_float(from[i]) : 0.0f; });
}
template <typename T>
inline void store(T* to, Vec a) {
  for (int i = 0; i < kWidth; ++i) from_float(a[i], to + i);
}
template <typename T>
inline void store_part(T* to, Vec a, int64_t count) {
  for (int i = 0; i < count; ++i) from_float(a[i], to + i);
}

}  // namespace
}  // namespace efft::cpu
