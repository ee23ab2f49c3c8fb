// What becomes of a product's sums, whichever kernel made them: the order of the steps and their formulas.
#pragma once

#include "efft/cuda/linear/arguments.cuh"
#include "efft/cuda/rows/pointwise.cuh"

namespace efft::cuda {

// scale * (x · w') + (shift * row sum of w' + bias): see InputNorm.
__device__ __forceinline__ float normalised_product(float product, RowNorm norm, float weight_sum, float bias) {
  return fmaf(product, norm.scale, fmaf(norm.shift, weight_sum, bias));
}

// A residual's LayerNorm before gamma and beta.
__device__ __forceinline__ float normalised_residual(float residual, RowNorm norm) {
  return fmaf(residual, norm.scale, norm.shift);
}

// An activation that is known when the kernel runs.
template <typename Result>
__device__ __forceinline__ void activate(float (&values)[8], Pointwise kind) {
#define EFFT_CASE(name) \
  case Pointwise::name: \
    return apply<Pointwise::name, Result>(values);
  switch (kind) {
    case Pointwise::none:
      return;
      EFFT_ACTIVATIONS(EFFT_CASE)
  }
#undef EFFT_CASE
}

// Finishes the values that a thread holds of a tile. A view knows where these lie, and so what belongs to the i-th:
//   float product(float sum, int i)   with bias, or the input's norm
//   void activate(float (&)[COUNT])
// add_residual(values) comes last.
template <int COUNT, typename View, typename AddResidual>
__device__ __forceinline__ void finish_values(float (&values)[COUNT], const View& view,
                                              const AddResidual& add_residual) {
#pragma unroll
  for (int i = 0; i < COUNT; ++i) values[i] = view.product(values[i], i);
  view.activate(values);
  add_residual(values);
}

}  // namespace efft::cuda
