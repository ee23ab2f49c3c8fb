// Number types of the CUDA kernels: conversion to and from fp32, and packs of up to 16 bytes read in one access.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "efft/cuda/kinds.h"

namespace efft::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4)
    return x;
  else if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(x);
  else
    return __float2bfloat16_rn(x);
}

// Two neighbouring numbers of two bytes in a word, the first in its lower half.
template <typename T>
__device__ __forceinline__ uint32_t pack_pair(float low, float high) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

template <typename T>
__device__ __forceinline__ float2 unpack_pair(uint32_t pair) {
  if constexpr (std::is_same_v<T, __half>)
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  else
    return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}

template <typename T, int WIDTH>
struct alignas(sizeof(T) * WIDTH) Pack {
  T values[WIDTH];
};

// Elements of T in the widest access a thread can make.
template <typename T>
constexpr int kPackWidth = 16 / sizeof(T);

template <typename T, int WIDTH>
__device__ __forceinline__ void load(const T* from, float (&to)[WIDTH]) {
  const auto pack = *reinterpret_cast<const Pack<T, WIDTH>*>(from);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) to[i] = to_float(pack.values[i]);
}

// fp32 parameters (bias, gamma, beta): two 16-byte accesses where the matching data takes eight elements.
template <int WIDTH>
__device__ __forceinline__ void load_parameters(const float* from, float (&to)[WIDTH]) {
  constexpr int kStep = WIDTH < 4 ? WIDTH : 4;
#pragma unroll
  for (int i = 0; i < WIDTH; i += kStep) {
    const auto pack = *reinterpret_cast<const Pack<float, kStep>*>(from + i);
#pragma unroll
    for (int j = 0; j < kStep; ++j) to[i + j] = pack.values[j];
  }
}

template <typename T, int WIDTH>
__device__ __forceinline__ void store(T* to, const float (&from)[WIDTH]) {
  Pack<T, WIDTH> pack;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) pack.values[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, WIDTH>*>(to) = pack;
}

}  // namespace efft::cuda

// Each header of a kernel declares its launchers `extern template` for these types; the .cu beside it defines them, so
// that a kernel is compiled once whoever includes its header.
#define EFFT_EACH_TYPE(X) X(float) X(__half) X(__nv_bfloat16)
