// Products with weights, epilogue included, on sm_90a: out = activation(x · w^T + bias) and out = x · w^T + bias +
// residual. fp16 and bf16, sums in fp32.
//
// Declarations only; kernels/cuda/linear_*.cu hold the instantiations for __half and __nv_bfloat16.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear_arguments.cuh"
#include "efft/cuda/linear_tile.cuh"

namespace efft::cuda {

// Whether this device runs sm_90a code and the shape suits the copy engine: n and k multiples of 8.
bool linear_supported(int n, int k);

// x [capacity, k], w [n, k], both 16-byte aligned; bias fp32 [n] or nullptr; out [capacity, n]. Only rows below *tokens
// (device memory) are computed and written. With Order::kOverlap, *tokens must have been written no later than two
// kernels before this one on the stream, and the kernel in between must wait for its predecessor before it releases its
// successor.
template <typename T>
cudaError_t linear_bias_activation(const T* x, const T* w, const float* bias, T* out, const int* tokens, int capacity,
                                   int n, int k, Pointwise pointwise, cudaStream_t stream,
                                   Order order = Order::kOverlap);

// The same plus residual [capacity, n], which may be `out` itself.
template <typename T>
cudaError_t linear_bias_residual(const T* x, const T* w, const float* bias, const T* residual, T* out,
                                 const int* tokens, int capacity, int n, int k, cudaStream_t stream,
                                 Order order = Order::kOverlap);

// The general form: any epilogue, input norm where a.norm.weight_sums is set, a chosen tile.
template <typename T>
cudaError_t linear(const T* x, const T* w, const LinearArguments<T>& a, int capacity, const LinearChoice& choice,
                   Order order, cudaStream_t stream);

}  // namespace efft::cuda
