// Products of many tokens with weights on sm_90a, epilogue included: out = pointwise(x · w^T + bias) + residual. fp16
// and bf16, sums in fp32. linear.cuh has the products of few tokens.
//
// Declarations only; kernels/cuda/wide_*.cu hold the instantiations for __half and __nv_bfloat16.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/wide_arguments.cuh"

namespace efft::cuda {

// How a product is cut: into tiles of 128 tokens by so many outputs.
enum class WideCut {
  none,  // not at all: another kernel is faster
  columns96,
  columns176,  // with GELU only
  columns192,  // with GELU only
  columns256,  // without an activation only
  turns192,    // with GELU only; the epilogue runs beside the next tile's products
};

// The cut for a product of about `expected_tokens` rows where linear_supported(n, k); WideCut::none where it does not
// pay, or pointwise is neither none nor gelu.
WideCut choose_wide(int expected_tokens, int n, int k, Pointwise pointwise);

// x [capacity, k], w [n, k], a.out and a.residual [capacity, n], all 16-byte aligned, a.n and a.k multiples of 8. Only
// rows below *a.tokens are computed and written; pointwise other than none goes without a residual. With
// Order::kOverlap, *a.tokens must have been written no later than two kernels before this one on the stream, and the
// kernel in between must wait for its predecessor before it releases its successor. cudaErrorInvalidValue for a
// cut that the pointwise function does not have.
template <typename T>
cudaError_t wide_linear(const T* x, const T* w, const WideArguments<T>& a, int capacity, Pointwise pointwise,
                        WideCut cut, cudaStream_t stream, Order order = Order::kOverlap);

}  // namespace efft::cuda
