// The activations, computed in fp32.
#pragma once

#include "efft/cuda/types.cuh"

namespace efft::cuda {

// erf(x / sqrt(2)) within 2.1e-5, for results that are rounded to two bytes: half the instructions of erff and none of
// them on the special-function unit, which a product's epilogue would wait for. An odd polynomial, fitted to the least
// worst error on [-4.2, 4.2]; beyond, the function is 1 within 2.7e-5.
__device__ __forceinline__ float erf_of_scaled(float x) {
  const float c = fminf(fmaxf(x, -4.2f), 4.2f), s = c * c;
  float p = 1.1996066640040937e-10f;
  p = fmaf(p, s, -1.1266587662817074e-08f);
  p = fmaf(p, s, 4.687335319886188e-07f);
  p = fmaf(p, s, -1.1521519809321035e-05f);
  p = fmaf(p, s, 1.891486463136971e-04f);
  p = fmaf(p, s, -2.2282954305410385e-03f);
  p = fmaf(p, s, 1.9660260528326035e-02f);
  p = fmaf(p, s, -1.327207386493683e-01f);
  p = fmaf(p, s, 7.978149056434631e-01f);
  return c * p;
}

// T: what the result will be stored as.
template <Pointwise KIND, typename T = float>
__device__ __forceinline__ float apply(float x) {
  if constexpr (KIND == Pointwise::gelu && sizeof(T) == 2) {
    const float half = 0.5f * x;
    return fmaf(half, erf_of_scaled(x), half);
  } else if constexpr (KIND == Pointwise::gelu) {
    constexpr float kHalfSqrt = 0.70710678118654752f;
    return 0.5f * x * (1.f + erff(x * kHalfSqrt));
  } else if constexpr (KIND == Pointwise::gelu_tanh) {
    constexpr float kSqrtTwoOverPi = 0.79788456080286536f;
    return 0.5f * x * (1.f + tanhf(kSqrtTwoOverPi * (x + 0.044715f * x * x * x)));
  } else if constexpr (KIND == Pointwise::relu) {
    return x < 0.f ? 0.f : x;  // not fmaxf, which would turn NaN into 0
  } else {
    return x;
  }
}

}  // namespace efft::cuda
