// Products of few tokens with weights on sm_90a, epilogue included (linear_arguments.cuh says what it may be). fp16 and
// bf16, sums in fp32. wide.cuh has the products of many.
//
// Declarations only; kernels/cuda/linear_*.cu hold the instantiations for __half and __nv_bfloat16.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear_arguments.cuh"
#include "efft/cuda/linear_tile.cuh"

namespace efft::cuda {

// Whether this device runs sm_90a code and the shape suits the copy engine: n and k multiples of 8.
bool linear_supported(int n, int k);

// x [capacity, k], w [n, k], all arrays 16-byte aligned. Only rows below *a.tokens (device memory) are computed and
// written. With Order::kOverlap, *a.tokens must have been written no later than two kernels before this one on the
// stream, and the kernel in between must wait for its predecessor before it releases its successor.
// cudaErrorInvalidValue for a tile that is not compiled in.
template <typename T>
cudaError_t linear(const T* x, const T* w, const LinearArguments<T>& a, int capacity, const LinearChoice& choice,
                   Order order, cudaStream_t stream);

}  // namespace efft::cuda
