// DeBERTa's attention (He et al. 2021) over packed tokens, without an S x S matrix in memory. With r the row of the
// distance i - j of a query i and a key j in tables of positions,
//   score = scale (q_i . k_j + q_i . position_keys[r] + k_j . position_queries[r]).
//
// Between a tile of queries and one of keys there are few distances: the products of the tile's queries and keys with
// the rows of that band are tiles like any other, and what a pair of tokens adds is looked up in them, in shared
// memory.
//
// Declarations only; kernels/cuda/attention/disentangled.cu holds the instantiations.
#pragma once

#include "efft/cuda/attention/arguments.cuh"
#include "efft/cuda/launch.cuh"

namespace efft::cuda {

template <typename T>
struct DisentangledArguments {
  // kv_heads == heads; q_bias is nullptr: biases of queries and keys are in qkv already, since positions are multiplied
  // by them. v_bias may be given.
  AttentionArguments<T> attention;
  const T* position_keys;     // [rows, heads * head_size] or nullptr
  const T* position_queries;  // the same
  const int* rows;            // by distance, as distance_table (rows/positions.cuh) wrote them; rows[origin]: of 0
  int origin;

  // The row of a distance, of a table for one head.
  __device__ int row(int distance) const { return __ldg(rows + origin + distance); }
  __device__ const T* position(const T* table, int row, int head) const {
    return table + static_cast<long long>(row) * attention.context() + head * attention.head_size;
  }
};

// max_length: no sequence is longer, and `rows` was made for it. Rows of out from the number of tokens on are not
// written. Deterministic. Returns cudaErrorInvalidValue for a shape that is not covered, otherwise the launch's error.
// With Order::kOverlap, cu_seqlens and `rows` must be older than the kernel in front (see launch.cuh).
template <typename T>
cudaError_t disentangled_attention(const DisentangledArguments<T>& arguments, int max_length, cudaStream_t stream,
                                   Order order = Order::kOverlap);

}  // namespace efft::cuda
