// Attention with mma.sync: every head size, sm_80 and later, and the better choice for many short sequences, which
// share tiles. A block takes one head of a run of packed tokens and walks over the keys of all sequences in it; each
// warp skips the keys that none of its 16 rows sees.
#pragma once

#include "efft/cuda/attention/arguments.cuh"
#include "efft/cuda/attention/load.cuh"
#include "efft/cuda/attention/mask.cuh"
#include "efft/cuda/attention/mma.cuh"
#include "efft/cuda/attention/softmax.cuh"
#include "efft/cuda/attention/tiles.h"
#include "efft/cuda/launch.cuh"

namespace efft::cuda {

// What the policy adds, of rows that may belong to different sequences.
template <typename T, int kKeys, typename Score>
__device__ inline void add_scores(Accumulator<kKeys>& scores, const AttentionArguments<T, Score>& arguments,
                                  const PackedTile& tile, int row, int head, int first_key) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const KeyRange sequence = row_sequence(arguments.cu_seqlens, tile, row + 8 * r);
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 2 * r; i < 2 * r + 2; ++i) {
        const int key = first_key + 8 * group + fragment_column() + i % 2;
        if (key < sequence.begin || key >= sequence.end) continue;
        scores[group][i] += arguments.score.added(head, row + 8 * r - key);
      }
    }
  }
}

template <typename T, int kHead>
constexpr int packed_shared_bytes() {
  return 2 * attention_tiles::Packed::kStages * attention_tiles::Packed::kKeys * kHead * int(sizeof(T));
}

template <typename T, int kHead, int kBytes, typename Score>
__global__ void __launch_bounds__(attention_tiles::Packed::kThreads)
    attention_packed_kernel(const AttentionArguments<T, Score> arguments) {
  using Tiles = attention_tiles::Packed;
  constexpr int kBlockBytes = Tiles::kKeys * kHead * int(sizeof(T));
  extern __shared__ __align__(128) unsigned char shared[];
  const uint32_t blocks = ptx::shared_address(shared);  // key and value blocks of each stage in turn

  wait_then_release();
  const int head = blockIdx.y;
  const int head_size = arguments.head_size;
  const int first = blockIdx.x * Tiles::kRows;
  const PackedTile tile = packed_tile(arguments.cu_seqlens, arguments.batch, first, Tiles::kRows);
  if (first >= tile.tokens) return;

  const KeyRange keys = tile_keys(arguments.cu_seqlens, tile, first, Tiles::kRows, arguments.score);
  const auto load = [&](int begin, int stage) {
    const uint32_t block = blocks + 2 * stage * kBlockBytes;
    const long long stride = arguments.width();
    const int valid = keys.end - begin;
    load_block<T, kHead, Tiles::kKeys, Tiles::kThreads, kBytes>(block, arguments.key(begin, head), stride, valid,
                                                                head_size);
    load_block<T, kHead, Tiles::kKeys, Tiles::kThreads, kBytes>(block + kBlockBytes, arguments.value(begin, head),
                                                                stride, valid, head_size);
    ptx::cp_async_commit_group();
  };
  load(keys.begin, 0);

  const int row = first + threadIdx.x / 32 * 16 + fragment_row();
  const KeyRange ranges[2] = {row_keys(arguments.cu_seqlens, tile, row, arguments.score),
                              row_keys(arguments.cu_seqlens, tile, row + 8, arguments.score)};
  const StripKeys strip(ranges);
  const bool exists[2] = {row < tile.tokens, row + 8 < tile.tokens};
  Operand<kHead> queries;
  const T* const query_rows[2] = {exists[0] ? arguments.query(row, head) : nullptr,
                                  exists[1] ? arguments.query(row + 8, head) : nullptr};
  load_queries<T, kHead>(queries, query_rows, arguments.query_bias(head), head_size);

  OnlineSoftmax softmax(score_scale(arguments.scale));
  Accumulator<kHead> output = {};
  int stage = 0;
  for (int begin = keys.begin; begin < keys.end; begin += Tiles::kKeys) {
    const int end = begin + Tiles::kKeys;
    if (end < keys.end) {
      load(end, stage ^ 1);
      ptx::cp_async_wait_group<1>();
    } else {
      ptx::cp_async_wait_group<0>();
    }
    __syncthreads();
    if (strip.sees(begin, end)) {
      const uint32_t block = blocks + 2 * stage * kBlockBytes;
      Accumulator<Tiles::kKeys> scores;
      mma_scores<T, kHead, Tiles::kKeys>(scores, queries, block);
      if constexpr (Score::kAdds) add_scores<T, Tiles::kKeys>(scores, arguments, tile, row, head, begin);
      if (!strip.sees_all(begin, end)) mask_scores<Tiles::kKeys>(scores, begin, ranges);
      softmax.raise<Tiles::kKeys, kHead>(scores, output);
      softmax.exponentiate<Tiles::kKeys>(scores);
      Operand<Tiles::kKeys> probabilities;
      to_operand<T, Tiles::kKeys>(probabilities, scores);
      mma_output<T, kHead, Tiles::kKeys>(output, probabilities, block + kBlockBytes);
    }
    __syncthreads();  // the next turn loads into this stage
    stage ^= 1;
  }

  float inverse[2];
  softmax.normalizer(inverse);
  T* const output_rows[2] = {exists[0] ? arguments.output(row, head) : nullptr,
                             exists[1] ? arguments.output(row + 8, head) : nullptr};
  store_output<T, kHead>(output, inverse, arguments.value_bias(head), output_rows, head_size, arguments.out,
                         {arguments.operand_inverse, arguments.operand_zero});
}

}  // namespace efft::cuda
