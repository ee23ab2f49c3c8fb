// norm(word[id] + position[p] + segment[s]) of every valid token, straight into packed rows, each of these where the
// encoder has it.
// Bound by memory: three table rows read and one row written a token.
#pragma once

#include "efft/cuda/call.cuh"
#include "efft/cuda/rows/rows.cuh"
#include "efft/spec.h"

namespace efft::cuda {

// The three tables [rows, width] and their numbers of rows; nullptr: there is no such table (never of words).
template <typename T>
struct EmbeddingTables {
  const T* word;
  const T* position;
  const T* segment;
  int words;
  int positions;
  int segments;
};

struct EmbeddingNorm {
  const float* gamma;  // [width], or nullptr: no norm
  const float* beta;   // [width]
  float epsilon;
  PositionCount count;
  int start;  // slot and mask: the row of a sequence's first token; ids: the pad id
  NormKind kind = NormKind::layer;
  int64_t dropout_token = EncoderSpec::kNoToken;  // its word row counts as zeros
  const float* factors = nullptr;                 // [batch] or nullptr: of word rows, as word_factors wrote them
};

namespace detail {

// The row of the position table for the token at `column` of its row of ids: see PositionCount. By a whole warp.
// rank: of the token among its row's valid ones, from 0.
__device__ __forceinline__ int64_t position_of(const EmbeddingNorm& norm, const int64_t* ids, int column, int rank) {
  if (norm.count == PositionCount::slot) return column + norm.start;
  if (norm.count == PositionCount::mask) return rank + norm.start;
  if (norm.count == PositionCount::none) return 0;
  if (ids[column] == norm.start) return norm.start;
  int others = 0;
  for (int c = threadIdx.x; c <= column; c += kWarp) others += ids[c] != norm.start;
  return norm.start + __reduce_add_sync(0xffffffffu, others);
}

// Packed index of the first token of sequence b is cu_seqlens[b].
template <typename T, int WIDTH, int CHUNKS>
__global__ void __launch_bounds__(kWarp* kRowWarps)
    embed_norm_kernel(const Call* call, const int* cu_seqlens, const int* rows, const int* tokens,
                      EmbeddingTables<T> tables, EmbeddingNorm norm, T* out, int width) {
  wait_for_predecessor();
  release_successor();
  const int token = warp_row();
  if (token >= *tokens) return;
  const int row = rows[token];
  const int length = call->length;
  const int sequence = row / length;
  const int begin = cu_seqlens[sequence], place = call->place(token, row);
  const int64_t* const ids = call->ids + (call->packed() ? begin : static_cast<int64_t>(sequence) * length);
  const int64_t position = position_of(norm, ids, row - sequence * length, token - begin);
  const int64_t id = call->ids[place], segment = tables.segment == nullptr ? 0 : call->segments[place];
  const bool inside = id >= 0 && id < tables.words &&
                      (tables.segment == nullptr || (segment >= 0 && segment < tables.segments)) &&
                      (tables.position == nullptr || (position >= 0 && position < tables.positions));
  const float factor = norm.factors == nullptr ? 1.f : id == norm.dropout_token ? 0.f : norm.factors[sequence];
  float values[CHUNKS][WIDTH];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int column = pack_column<WIDTH>(c);
    float p[WIDTH], s[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[c][i] = p[i] = s[i] = 0.f;
    if (column < width && inside) {
      load(tables.word + id * width + column, values[c]);
      if (tables.position != nullptr) load(tables.position + position * width + column, p);
      if (tables.segment != nullptr) load(tables.segment + segment * width + column, s);
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[c][i] = values[c][i] * factor + (p[i] + s[i]);
  }
  if (norm.gamma != nullptr) normalise(values, width, norm.gamma, norm.beta, norm.epsilon, norm.kind);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int column = pack_column<WIDTH>(c);
    if (column >= width) continue;
    if (!inside) {
#pragma unroll
      for (int i = 0; i < WIDTH; ++i) values[c][i] = nanf("");
    }
    store(out + static_cast<int64_t>(token) * width + column, values[c]);
  }
}

}  // namespace detail

// out [capacity, width]; rows past *tokens (device memory) stay untouched. call, cu_seqlens and rows as unpad wrote
// them. A token whose id, segment or position lies outside its table gets a row of NaN: a device cannot raise, and a
// trap would take the process's other models with it.
template <typename T>
cudaError_t embed_norm(const Call* call, const int* cu_seqlens, const int* rows, const int* tokens,
                       const EmbeddingTables<T>& tables, const EmbeddingNorm& norm, T* out, int capacity, int width,
                       cudaStream_t stream, Order order = Order::kOverlap) {
  const bool vectors = aligned(tables.word) && aligned(tables.position) && aligned(tables.segment) &&
                       aligned(norm.gamma) && aligned(norm.beta) && aligned(out);
  return for_row_width<T>(width, vectors, [&](auto shape) {
    using Shape = decltype(shape);
    return launch(detail::embed_norm_kernel<T, Shape::kWidth, Shape::kChunks>,
                  {row_grid(capacity), row_block(), 0, order, stream}, call, cu_seqlens, rows, tokens, tables, norm,
                  out, width);
  });
}

#define EFFT_EMBED_NORM(T)                                                                                    \
  template cudaError_t embed_norm(const Call*, const int*, const int*, const int*, const EmbeddingTables<T>&, \
                                  const EmbeddingNorm&, T*, int, int, cudaStream_t, Order);
#define EFFT_EMBED_NORM_EXTERN(T) extern EFFT_EMBED_NORM(T)
EFFT_EACH_TYPE(EFFT_EMBED_NORM_EXTERN)
#undef EFFT_EMBED_NORM_EXTERN

}  // namespace efft::cuda
