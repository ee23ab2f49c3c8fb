// exp2, erf and the activations on Vec.
//
// The polynomials are Chebyshev fits, evaluated by Horner's rule in fp32; the errors quoted were measured in that
// arithmetic over the whole interval. `Precision::full` serves fp32, `Precision::brief` results that are rounded to
// 16 or 8 bits right afterwards, whose own rounding is two orders coarser.
#pragma once

#include "efft/cpu/kernels.h"
#include "efft/cpu/simd.h"

namespace efft::cpu {
namespace {

enum class Precision { full, brief };

template <int N>
inline Vec polynomial(Vec x, const float (&coefficients)[N]) {
  Vec sum = splat(coefficients[N - 1]);
#pragma GCC unroll 16
  for (int i = N - 2; i >= 0; --i) sum = fma(sum, x, splat(coefficients[i]));
  return sum;
}

// 2^x for finite x; below -126 the smallest normal number's neighbourhood or zero. Relative error 1.0e-7
// (full), 3.7e-6.
template <Precision precision>
inline Vec exp2(Vec x) {
  constexpr float full[] = {1.0f,           0.693147182f,   0.240226507f,   0.0555032715f,
                            0.00961802527f, 0.00134004327f, 0.000154697322f};
  constexpr float brief[] = {1.00000012f, 0.693121016f, 0.240221068f, 0.0559220351f, 0.00967603736f};
  const Vec n = round_to_integer(x);
  const Vec fraction = x - n;
  return scale_by_power(precision == Precision::full ? polynomial(fraction, full) : polynomial(fraction, brief), n);
}

// erf(z) = z Q(2 z^2 / limit^2 - 1) up to +-limit, +-1 behind. Absolute error 2.1e-7.
inline Vec erf(Vec z) {
  constexpr float coefficients[] = {0.360736817f,   -0.180108562f,   0.134084836f,   -0.109181851f,
                                    0.090592213f,   -0.0739898905f,  0.0584258288f,  -0.0435857326f,
                                    0.0296092127f,  -0.0196174905f,  0.014343502f,   -0.00817048363f,
                                    0.00182033039f, -0.00104527792f, 0.00212785811f, -0.000939271937f};
  constexpr float limit = 3.92f;
  const Vec bounded = max(min(z, splat(limit)), splat(-limit));
  const Vec t = fma(bounded * bounded, splat(2.0f / (limit * limit)), splat(-1.0f));
  return max(min(bounded * polynomial(t, coefficients), splat(1.0f)), splat(-1.0f));
}

// The brief form folds x / sqrt(2) and the halving into the polynomial and bounds |x| at 3 sqrt(2): its error stays
// below 1e-4 for negative x and below 4e-5 |x| for positive.
template <Precision precision>
inline Vec gelu(Vec x) {
  if constexpr (precision == Precision::full) {
    const Vec half_x = x * splat(0.5f);
    return fma(half_x, erf(x * splat(0.707106781f)), half_x);
  }
  constexpr float root = 0.353553391f;  // sqrt(2) / 4
  constexpr float coefficients[] = {0.470134258f * root,  -0.228684098f * root,  0.157376945f * root,
                                    -0.111587308f * root, 0.0734755322f * root,  -0.0386645123f * root,
                                    0.021593133f * root,  -0.0185770225f * root, 0.0082701426f * root};
  constexpr float limit = 4.24264069f;
  const Vec raised = max(x, splat(-limit));
  const Vec bounded = min(raised, splat(limit));
  const Vec t = fma(bounded * bounded, splat(2.0f / (limit * limit)), splat(-1.0f));
  return raised * fma(bounded, polynomial(t, coefficients), splat(0.5f));
}

// x sigmoid(2u) with u = sqrt(2/pi) (x + 0.044715 x^3), which is x (1 + tanh(u)) / 2.
template <Precision precision>
inline Vec gelu_tanh(Vec x) {
  constexpr float minus_two_log2e_root = -2.0f * 1.44269504f * 0.797884561f;
  const Vec exponent = x * splat(minus_two_log2e_root) * fma(x * x, splat(0.044715f), splat(1.0f));
  // 2^126 keeps the quotient finite where the true value has long vanished.
  const Vec bounded = max(min(exponent, splat(126.0f)), splat(-126.0f));
  return x / (splat(1.0f) + exp2<precision>(bounded));
}

// x sigmoid(x); the bound as above.
template <Precision precision>
inline Vec silu(Vec x) {
  const Vec bounded = max(min(x * splat(-1.44269504f), splat(126.0f)), splat(-126.0f));
  return x / (splat(1.0f) + exp2<precision>(bounded));
}

template <Precision>
inline Vec relu(Vec x) {
  return max(x, splat(0.0f));
}

// A step as a functor of Vec.
template <Pointwise, Precision>
struct Applied {
  Vec operator()(Vec x) const { return x; }
};

#define EFFT_APPLIED(name)                                     \
  template <Precision precision>                               \
  struct Applied<Pointwise::name, precision> {                 \
    Vec operator()(Vec x) const { return name<precision>(x); } \
  };
EFFT_ACTIVATIONS(EFFT_APPLIED)
#undef EFFT_APPLIED

// f(functor) for the step that is named at run time.
template <Precision precision, typename F>
inline void with_step(Pointwise step, F f) {
  if (step == Pointwise::none) f(Applied<Pointwise::none, precision>{});
#define EFFT_CASE(name) \
  if (step == Pointwise::name) f(Applied<Pointwise::name, precision>{});
  EFFT_ACTIVATIONS(EFFT_CASE)
#undef EFFT_CASE
}

}  // namespace
}  // namespace efft::cpu
