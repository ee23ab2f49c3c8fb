// 16-bit storage types and their exact conversions, for code without hardware support.
#pragma once

#include <cstdint>
#include <cstring>

#include "efft/types.h"

namespace efft::cpu {

struct bf16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};

// Internal linkage on purpose: files compiled for different instruction sets include this, and the linker must
// never hand one file's AVX-512 code to another.
namespace {

inline float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float to_float(float value) { return value; }

inline float to_float(bf16 value) { return as_float(static_cast<uint32_t>(value.bits) << 16); }

inline float to_float(half value) {
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude < 0x400u) return as_float(sign | as_bits(static_cast<float>(magnitude) * 0x1p-24f));
  return as_float(sign | ((magnitude << 13) + 0x38000000u));
}

inline void from_float(float value, float* out) { *out = value; }

// Round to nearest even; NaN stays NaN.
inline void from_float(float value, bf16* out) {
  const uint32_t bits = as_bits(value);
  if (value != value) {
    out->bits = static_cast<uint16_t>(bits >> 16 | 0x40u);
    return;
  }
  out->bits = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline void from_float(float value, half* out) {
  const uint32_t bits = as_bits(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) {
    out->bits = sign | 0x7e00u;
  } else if (magnitude >= 0x477ff000u) {  // rounds to more than the largest finite half
    out->bits = sign | 0x7c00u;
  } else if (magnitude < 0x38800000u) {
    // Subnormal: adding 0.5 lets the float adder do the rounding at the right bit.
    out->bits = static_cast<uint16_t>(sign | (as_bits(as_float(magnitude) + 0.5f) - 0x3f000000u));
  } else {
    const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
    out->bits = static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
  }
}

}  // namespace
}  // namespace efft::cpu
