// Multi-head self-attention over packed tokens: softmax(scale Q K^T) V for each sequence of a batch,
// without padding and without an S x S matrix in memory.
//
// Declarations only; launch.cuh holds the definition and kernels/cuda/attention/ instantiates it for __half,
// __nv_bfloat16 and float with the policies of score.cuh. Another policy is another instantiation.
#pragma once

#include "efft/cuda/attention/arguments.cuh"
#include "efft/cuda/launch.cuh"

namespace efft::cuda {

// max_length  no sequence is longer; a bound, the kernels read the lengths on the device
// capacity    rows that qkv and out have room for, at least the number of tokens; it sizes the grid
//
// With Order::kOverlap, cu_seqlens must be older than the kernel in front (see launch.cuh). Rows of out from the number
// of tokens on are not written. Deterministic. Returns cudaErrorInvalidValue for a shape that is not covered, otherwise
// the launch's error. Throws std::runtime_error where there is no device.
template <typename T, typename Score>
cudaError_t attention(const AttentionArguments<T, Score>& arguments, int max_length, int capacity, cudaStream_t stream,
                      Order order = Order::kOverlap);

}  // namespace efft::cuda
