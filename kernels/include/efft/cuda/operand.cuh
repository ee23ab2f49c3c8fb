// Operands of eight bits: how a row is rounded to them.
//
//   uint8_t        value = scale * integer + shift; each row over its own range, which always includes zero (as on the
//                  CPU), or in given steps from a given zero
//   __nv_fp8_e4m3  value = scale * number; each row's largest magnitude becomes the type's, or scale is a given step,
//                  beyond whose range magnitudes stay at the largest
#pragma once

#include <cuda_fp8.h>

#include "efft/cuda/linear/arguments.cuh"
#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {

// The weights' type that the matrix units multiply an operand by.
template <typename Operand>
struct EightBitWeight;
template <>
struct EightBitWeight<uint8_t> {
  using type = int8_t;
  using sum = int32_t;
};
template <>
struct EightBitWeight<__nv_fp8_e4m3> {
  using type = __nv_fp8_e4m3;
  using sum = float;
};

// Steps that are the same for every row: value = step * (number - zero). zero: of uint8_t only.
struct FixedSteps {
  float step = 0;  // 0: each row has its own
  float zero = 0;

  __host__ __device__ bool given() const { return step > 0; }
  __host__ __device__ float inverse() const { return 1.f / step; }
  __host__ __device__ RowNorm scale() const { return {step, -zero * step}; }
};

// Where a row's operand goes.
template <typename Operand>
struct OperandRows {
  Operand* out;          // [rows, width]
  RowNorm* scales;       // [rows]: what each row's numbers stand for
  const float* factors;  // [width] or nullptr: multiply the row before it is rounded
  FixedSteps steps;
};

constexpr float kLargestE4m3 = 448.f;

// How a row is rounded: by value * inverse + zero.
template <typename Operand>
struct Rounding {
  float inverse, zero;
  RowNorm scale;

  // Two neighbours, the first in the lower half.
  __device__ __forceinline__ uint16_t pair(float low, float high) const {
    if constexpr (std::is_same_v<Operand, uint8_t>) {
      // Beyond 1.5 * 2^23 the bits of fp32 count whole numbers: a conversion has a quarter of an addition's rate.
      constexpr float kWhole = 12582912.f;
      const auto bits = [&](float value) {
        return __float_as_uint(fminf(fmaxf(fmaf(value, inverse, zero + kWhole), kWhole), kWhole + 255.f));
      };
      return static_cast<uint16_t>(__byte_perm(bits(low), bits(high), 0x0040));
    } else {
      return __nv_cvt_float2_to_fp8x2({low * inverse, high * inverse}, __NV_SATFINITE, __NV_E4M3);
    }
  }
};

// Of low <= 0 <= high. Floats that are not negative are in the order of their bits. e4m3 asks for magnitudes alone.
template <typename Operand>
__device__ __forceinline__ float2 warp_range(float low, float high) {
  const auto largest = [](float x) { return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x))); };
  if constexpr (std::is_same_v<Operand, uint8_t>) {
    return make_float2(-largest(fabsf(low)), largest(fabsf(high)));
  } else {
    return make_float2(0.f, largest(fmaxf(fabsf(high), fabsf(low))));
  }
}

// Takes a value into a range as warp_range reads it.
template <typename Operand>
__device__ __forceinline__ void extend(float value, float& low, float& high) {
  if constexpr (std::is_same_v<Operand, uint8_t>) {
    low = fminf(low, value), high = fmaxf(high, value);
  } else {
    high = fmaxf(high, fabsf(value));
  }
}

// low <= 0 <= high: the row's range. A row that holds no number at all (NaN) keeps that in e4m3.
template <typename Operand>
__device__ __forceinline__ Rounding<Operand> rounding_of(float low, float high) {
  if constexpr (std::is_same_v<Operand, uint8_t>) {
    const float range = high - low, inverse = range > 0.f ? __fdividef(255.f, range) : 0.f, step = range * (1 / 255.f);
    const float zero = rintf(-low * inverse);
    return {inverse, zero, {step, -step * zero}};
  } else {
    const float most = fmaxf(high, -low);
    return {most > 0.f ? __fdividef(kLargestE4m3, most) : 0.f, 0.f, {most * (1 / kLargestE4m3), 0.f}};
  }
}

template <typename Operand>
__device__ __forceinline__ Rounding<Operand> rounding_in(const FixedSteps& steps) {
  return {steps.inverse(), steps.zero, steps.scale()};
}

// Pairs of fp16 in given steps, each in half a word as its neighbours in memory: numbers of eight bits are exact in
// fp16. inverse: of the step.
template <typename Operand>
__device__ __forceinline__ uint16_t pair_in_steps(__half2 pair, __half2 inverse, __half2 zero) {
  if constexpr (std::is_same_v<Operand, uint8_t>) {
    // Between 1,024 and 2,048 the bits of fp16 count whole numbers.
    const __half2 low = __float2half2_rn(1024.f), high = __float2half2_rn(1024.f + 255.f);
    const __half2 number = __hmin2(__hmax2(__hfma2(pair, inverse, __hadd2(zero, low)), low), high);
    return static_cast<uint16_t>(__byte_perm(reinterpret_cast<const uint32_t&>(number), 0, 0x4420));
  } else {
    return __nv_cvt_halfraw2_to_fp8x2(__hmul2(pair, inverse), __NV_SATFINITE, __NV_E4M3);
  }
}

template <typename Operand, int WIDTH>
__device__ __forceinline__ void store_operand(Operand* to, const float (&values)[WIDTH], const Rounding<Operand>& by) {
  static_assert(WIDTH % 2 == 0);
  Pack<uint16_t, WIDTH / 2> pack;
#pragma unroll
  for (int i = 0; i < WIDTH; i += 2) pack.values[i / 2] = by.pair(values[i], values[i + 1]);
  *reinterpret_cast<Pack<uint16_t, WIDTH / 2>*>(to) = pack;
}

}  // namespace efft::cuda
