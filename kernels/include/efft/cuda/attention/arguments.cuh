// What every attention kernel is given.
#pragma once

#include "efft/cuda/attention/score.cuh"

namespace efft::cuda {

// A row of qkv holds `heads` queries, then `kv_heads` keys and as many values; heads / kv_heads queries in a row share
// a key and a value.
template <typename T, typename SCORE = FullScores>
struct AttentionArguments {
  using Score = SCORE;

  const T* qkv;           // [tokens, (heads + 2 * kv_heads) * head_size]
  const float* q_bias;    // [heads * head_size] or nullptr
  const float* v_bias;    // [kv_heads * head_size] or nullptr
  const int* cu_seqlens;  // [batch + 1]
  T* out;                 // [tokens, heads * head_size]
  int batch;
  int heads;
  int kv_heads;
  int head_size;
  float scale;  // of a query times a key
  Score score = {};
  // Not 0: `out` takes operands of eight bits in these steps, rows of heads * head_size bytes; zero 0: e4m3, else
  // uint8_t.
  float operand_inverse = 0;
  float operand_zero = 0;
  // kv_heads / heads in parts of kShare, rounded up; attention() sets it. A division by a number that is not known
  // beforehand takes a kernel fifty instructions.
  static constexpr unsigned kShare = 1 << 16;
  unsigned kv_share = kShare;

  __host__ __device__ int context() const { return heads * head_size; }
  __host__ __device__ int width() const { return (heads + 2 * kv_heads) * head_size; }
  __device__ int kv_head(int head) const { return static_cast<int>(head * kv_share / kShare); }
  __device__ const T* query(int token, int head) const {
    return qkv + static_cast<long long>(token) * width() + head * head_size;
  }
  __device__ const T* key(int token, int head) const {
    return qkv + static_cast<long long>(token) * width() + context() + kv_head(head) * head_size;
  }
  __device__ const T* value(int token, int head) const { return key(token, head) + kv_heads * head_size; }
  __device__ T* output(int token, int head) const {
    return out + static_cast<long long>(token) * context() + head * head_size;
  }
  // The key's bias adds the same number to all scores of a query, which softmax ignores: there is none here. Where it
  // does matter (keys that are turned, positions that are multiplied by keys) it is in the keys already.
  __device__ const float* query_bias(int head) const { return q_bias ? q_bias + head * head_size : nullptr; }
  // Probabilities sum to one, so the value's bias passes through to the output unchanged.
  __device__ const float* value_bias(int head) const { return v_bias ? v_bias + kv_head(head) * head_size : nullptr; }
};

}  // namespace efft::cuda
