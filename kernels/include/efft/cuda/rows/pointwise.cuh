// The activations, computed in fp32.
#pragma once

#include "efft/cuda/types.cuh"

namespace efft::cuda {

// NaN where either is NaN, unlike fmaxf.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// GELU within 4.9e-5, for results that are rounded to two bytes: max(x, 0) - |x| P(X > |x|) for a standard normal X.
// The probability is a polynomial in |x|, fitted to the least worst error of the product on [0, 4.3]; beyond, the
// product stays what it is there, 4e-5 at most. A third of erff's instructions, and none of them on the
// special-function unit, which a product's epilogue would wait for. In step for COUNT values, since each instruction
// of the polynomial waits for the one before.
template <int COUNT>
__device__ __forceinline__ void short_gelu(float (&x)[COUNT]) {
  constexpr float kCoefficients[] = {3.492413670755923e-04f,  -3.3674724400043488e-03f, 1.686372421681881e-02f,
                                     -4.345198720693588e-02f, 3.9201438426971436e-02f,  3.9754465222358704e-02f,
                                     9.69310849905014e-03f,   -4.004181921482086e-01f,  5.000383853912354e-01f};
  float t[COUNT], p[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) t[i] = fminf(fabsf(x[i]), 4.3f), p[i] = -1.4982122593210079e-05f;
#pragma unroll
  for (const float coefficient : kCoefficients)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) p[i] = fmaf(p[i], t[i], coefficient);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) x[i] = fmaf(-t[i], p[i], max_or_nan(x[i], 0.f));
}

// The same in pairs of fp16, within 2e-3 of any input: for results that are rounded to four bits or to large steps. The
// polynomial is of the whole product |x| P(X > |x|), fitted on [0, 3.2], in the distance from the middle: in |x| itself
// its terms grow so large that with coefficients in fp16 their sum is off by .2 at 4.
template <int COUNT>
__device__ __forceinline__ void short_gelu(__half2 (&x)[COUNT]) {
  constexpr float kCoefficients[] = {4.924542e-02f, 1.942359e-02f, -1.250927e-01f, 8.92781e-02f};
  constexpr float kLast = 3.2f, kMiddle = 1.6f;
  __half2 t[COUNT], p[COUNT];
#pragma unroll
  for (int i = 0; i < COUNT; ++i) {
    t[i] = __hsub2(__hmin2(__habs2(x[i]), __float2half2_rn(kLast)), __float2half2_rn(kMiddle));
    p[i] = __float2half2_rn(-2.125841e-02f);
  }
#pragma unroll
  for (const float coefficient : kCoefficients)
#pragma unroll
    for (int i = 0; i < COUNT; ++i) p[i] = __hfma2(p[i], t[i], __float2half2_rn(coefficient));
#pragma unroll
  for (int i = 0; i < COUNT; ++i) x[i] = __hsub2(__hmax2_nan(x[i], __float2half2_rn(0.f)), p[i]);
}

// T: what the result will be stored as.
template <Pointwise KIND, typename T = float>
__device__ __forceinline__ float apply(float x) {
  if constexpr (KIND == Pointwise::gelu && sizeof(T) == 2) {
    float values[] = {x};
    short_gelu(values);
    return values[0];
  } else if constexpr (KIND == Pointwise::gelu) {
    constexpr float kHalfSqrt = 0.70710678118654752f;
    return 0.5f * x * (1.f + erff(x * kHalfSqrt));
  } else if constexpr (KIND == Pointwise::gelu_tanh) {
    constexpr float kSqrtTwoOverPi = 0.79788456080286536f;
    return 0.5f * x * (1.f + tanhf(kSqrtTwoOverPi * (x + 0.044715f * x * x * x)));
  } else if constexpr (KIND == Pointwise::silu) {
    return x / (1.f + expf(-x));
  } else if constexpr (KIND == Pointwise::relu) {
    return x < 0.f ? 0.f : x;  // not fmaxf, which would turn NaN into 0
  } else {
    static_assert(KIND == Pointwise::none, "an activation without its formula here");
    return x;
  }
}

// The same for several values.
template <Pointwise KIND, typename T, int COUNT>
__device__ __forceinline__ void apply(float (&x)[COUNT]) {
  if constexpr (KIND == Pointwise::gelu && sizeof(T) == 2) {
    short_gelu(x);
  } else {
#pragma unroll
    for (float& value : x) value = apply<KIND, T>(value);
  }
}

}  // namespace efft::cuda
