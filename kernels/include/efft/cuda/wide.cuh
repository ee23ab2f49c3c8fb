// Products of many tokens with weights on sm_90a, epilogue included (linear_arguments.cuh says what it may be). fp16
// and bf16, sums in fp32. linear.cuh has the products of few tokens.
//
// Declarations only; kernels/cuda/wide_*.cu hold the instantiations for __half and __nv_bfloat16.
#pragma once

#include <algorithm>

#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear.cuh"

namespace efft::cuda {

// How a product is cut: into tiles of 128 tokens by so many outputs.
enum class WideCut {
  none,  // not at all: another kernel is faster
  columns96,
  columns176,  // with GELU only
  columns192,  // with GELU only
  columns256,  // without an activation only
  turns192,    // with GELU and no norm only; the epilogue runs beside the next tile's products
};

// The cut for a product of about `expected_tokens` rows where linear_supported(n, k); WideCut::none where it does not
// pay, or pointwise is neither none nor gelu.
WideCut choose_wide(int expected_tokens, int n, int k, Pointwise pointwise);

// Which of the own kernels a product gets: wide_linear, or linear where `wide` is none.
struct OwnChoice {
  WideCut wide;
  LinearChoice tile;

  // Of a tile, and so what one of a row's moments tells of.
  int columns() const { return wide == WideCut::columns96 ? 96 : tile.columns; }
};
// closes: the product adds a residual, and may be asked for moments.
OwnChoice choose_own(int expected_tokens, int n, int k, Pointwise pointwise, bool closes);

// Tokens to expect where up to `capacity` fit: beyond a single sequence's worth, batches are half padding on average.
inline int expected_tokens(int capacity) { return capacity <= 512 ? capacity : std::max(512, capacity / 2); }

// As linear() of linear.cuh, by a cut: x [capacity, k], w [n, k], all arrays 16-byte aligned, a.n and a.k multiples
// of 8. Only rows below *a.tokens are computed and written. An activation, or the input's norm, goes without a
// residual; the residual's norm and moments go with columns96. With Order::kOverlap, *a.tokens must have been written
// no later than two kernels before this one on the stream, and the kernel in between must wait for its predecessor
// before it releases its successor. cudaErrorInvalidValue for what the cut does not have.
template <typename T>
cudaError_t wide_linear(const T* x, const T* w, const LinearArguments<T>& a, int capacity, WideCut cut, Order order,
                        cudaStream_t stream);

// By either kernel.
template <typename T>
cudaError_t any_linear(const T* x, const T* w, const LinearArguments<T>& a, int capacity, const OwnChoice& choice,
                       cudaStream_t stream, Order order = Order::kOverlap) {
  return choice.wide != WideCut::none ? wide_linear(x, w, a, capacity, choice.wide, order, stream)
                                      : linear(x, w, a, capacity, choice.tile, order, stream);
}

}  // namespace efft::cuda
