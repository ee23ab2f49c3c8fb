// What an encoder's positions come to for one length, made once a call and read by all its layers: the sines and
// cosines of rotary embeddings, what is added to scores by distance, which row of a table of positions a distance
// takes.
#pragma once

#include <cuda_runtime.h>

#include "efft/cuda/call.cuh"
#include "efft/cuda/launch.cuh"
#include "efft/spec.h"

namespace efft::cuda {

// cosine and sine of rank * frequency, [tokens, pairs], by a token's rank within its sequence. The angle is rounded to
// fp32 first, as transformers rounds it, or (exact) kept in double, as its RoFormer's table does.
struct AngleTable {
  const float* frequencies;  // [pairs]; exact: [2, pairs], what fp32 leaves of them behind them
  float2* out;
  int pairs;
  bool exact;
};

// f of efft::bucket_of, made for |distance| on the host, whose logarithms it needs: f(n) = n up to `exact`, and then
// one more for each of `steps` that n has reached.
struct Buckets {
  static constexpr int kMost = 512;
  int exact;
  int count;
  int steps[kMost];
};

// Throws std::runtime_error with one line where there are more steps than kernels hold.
Buckets buckets_of(const EncoderSpec& spec);

// One row for each head, or one (disentangled), with a column for each distance: `origin` is 0.
struct DistanceTable {
  Relative kind;
  const float* relative;  // buckets: [buckets, heads]; alibi: slopes [heads]
  void* out;              // [heads, stride] float, over the scale; disentangled: [stride] int
  int length;             // distances below it are asked for, and kFarther more (attention/score.cuh)
  int heads;
  float over_scale;  // one over the factor of q.k
  int span;          // buckets: those of one direction; disentangled: rows of the table of one direction

  static int stride_of(int length);
  static int origin_of(int length) { return stride_of(length) / 2; }
};

// Either takes its place among the kernels in front of the first attention: it waits for its predecessor. cu_seqlens,
// rows and call as unpad wrote them; the first *tokens rows (device memory), at most `capacity`.
cudaError_t angle_table(const AngleTable& table, const Call* call, const int* cu_seqlens, const int* rows,
                        const int* tokens, int capacity, cudaStream_t stream);
cudaError_t distance_table(const DistanceTable& table, const Buckets& buckets, cudaStream_t stream);

// Numbers of fp32 in another type; no kernel in front or behind overlaps what it writes.
template <typename T>
cudaError_t round_to(const float* from, T* to, int64_t count, cudaStream_t stream);

// For each sequence, what its tokens' word rows are multiplied by where `dropout_token` embeds as zeros: 0.88 / (1 -
// its share of the sequence), 0 where nothing else is left (transformers' ESM: token dropout of 0.15 * 0.8 in
// training). cu_seqlens, rows and call as unpad wrote them. factors [batch_capacity].
cudaError_t word_factors(const Call* call, const int* cu_seqlens, const int* rows, int64_t dropout_token,
                         float* factors, int batch_capacity, cudaStream_t stream);

}  // namespace efft::cuda
