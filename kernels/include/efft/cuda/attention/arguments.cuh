// What every attention kernel is given.
#pragma once

#include "efft/cuda/attention/score.cuh"

namespace efft::cuda {

template <typename T, typename SCORE = FullScores>
struct AttentionArguments {
  using Score = SCORE;

  const T* qkv;           // [tokens, 3 * heads * head_size]
  const float* bias;      // [3 * heads * head_size] or nullptr
  const int* cu_seqlens;  // [batch + 1]
  T* out;                 // [tokens, heads * head_size]
  int batch;
  int heads;
  int head_size;
  Score score = {};
  // Not 0: `out` takes operands of eight bits in these steps, rows of heads * head_size bytes; zero 0: e4m3, else
  // uint8_t.
  float operand_inverse = 0;
  float operand_zero = 0;

  __device__ int hidden() const { return heads * head_size; }
  __device__ const T* query(int token, int head) const {
    return qkv + static_cast<long long>(token) * 3 * hidden() + head * head_size;
  }
  __device__ const T* key(int token, int head) const { return query(token, head) + hidden(); }
  __device__ const T* value(int token, int head) const { return query(token, head) + 2 * hidden(); }
  __device__ T* output(int token, int head) const {
    return out + static_cast<long long>(token) * hidden() + head * head_size;
  }
  // The key's bias adds the same number to all scores of a query, which softmax ignores: it is never read.
  __device__ const float* query_bias(int head) const { return bias ? bias + head * head_size : nullptr; }
  // Probabilities sum to one, so the value's bias passes through to the output unchanged.
  __device__ const float* value_bias(int head) const { return bias ? bias + 2 * hidden() + head * head_size : nullptr; }
};

}  // namespace efft::cuda
