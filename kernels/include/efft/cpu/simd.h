// The vector of floats of the instruction set that the including file is compiled for: `Vec`, kWidth lanes.
//
// Plain operators (+ - *) come from the compiler's vector types; what they lack is defined per instruction set with
// the same names. load/store take float, bf16 or half; the *_part forms touch `count` < kWidth elements.
#pragma once

#if defined(__AVX512F__)
#include "efft/cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "efft/cpu/simd_avx2.h"
#else
#include "efft/cpu/simd_portable.h"
#endif

namespace efft::cpu {
namespace {

template <typename T>
inline Vec load_some(const T* from, int64_t count) {
  return count >= kWidth ? load(from) : load_part(from, count);
}

template <typename T>
inline void store_some(T* to, Vec value, int64_t count) {
  if (count >= kWidth) {
    store(to, value);
  } else {
    store_part(to, value, count);
  }
}

}  // namespace
}  // namespace efft::cpu
