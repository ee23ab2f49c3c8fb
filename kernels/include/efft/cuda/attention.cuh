// Multi-head self-attention over packed tokens: softmax(Q K^T / sqrt(head size)) V for each sequence of a batch,
// without padding and without an S x S matrix in memory.
//
// Declarations only; attention_launch.cuh holds the definition and kernels/cuda/attention.cu instantiates it for
// __half, __nv_bfloat16 and float.
#pragma once

#include <cuda_runtime_api.h>

namespace efft::cuda {

// qkv             [tokens, 3 * heads * head_size], each row the query, key and value of a token, ordered by head
// bias            [3 * heads * head_size], added to qkv on the fly; nullptr when qkv already holds it
// cu_seqlens      [batch + 1] on the device, from 0 to the number of tokens; equal neighbours are empty sequences
// out             [tokens, heads * head_size]; rows from the number of tokens on are not written
// head_size       even, 2 to 128; 32, 64 and 128 have the fast path of sm_90a
// max_length      no sequence is longer; a bound, the kernels read the lengths on the device
// capacity_tokens rows that qkv and out have room for, at least the number of tokens; it sizes the grid
// programmatic    launch with programmatic stream serialization: the kernel may start before the one in front of it in
//                 the stream has finished. It waits for that one (griddepcontrol.wait) before it reads qkv, and lets
//                 its own dependents launch right after, but reads cu_seqlens at once: these must not be written by the
//                 kernel just in front, and that one must itself wait before it lets dependents launch. Ignored before
//                 sm_90.
//
// Deterministic. Returns cudaErrorInvalidValue for a shape that is not covered, otherwise the launch's error.
template <typename T>
cudaError_t attention(const T* qkv, const float* bias, const int* cu_seqlens, T* out, int batch, int heads,
                      int head_size, int max_length, int capacity_tokens, cudaStream_t stream,
                      bool programmatic = false);

}  // namespace efft::cuda
