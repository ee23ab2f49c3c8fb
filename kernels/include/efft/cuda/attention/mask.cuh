// Which scores of a strip of 16 query rows count.
#pragma once

#include <cmath>

#include "efft/cuda/attention/fragments.cuh"
#include "efft/cuda/attention/score.cuh"

namespace efft::cuda {

// Scores of keys outside their row's range become -inf; first_key is the key of column 0.
template <int kKeys>
__device__ inline void mask_scores(Accumulator<kKeys>& scores, int first_key, const KeyRange (&rows)[2]) {
#pragma unroll
  for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int key = first_key + 8 * group + fragment_column() + i % 2;
      const KeyRange& range = rows[i / 2];
      if (key < range.begin || key >= range.end) scores[group][i] = -INFINITY;
    }
  }
}

// Scores of all columns from `columns` on become -inf.
template <int kKeys>
__device__ inline void mask_tail(Accumulator<kKeys>& scores, int columns) {
#pragma unroll
  for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * group + fragment_column() + i % 2 >= columns) scores[group][i] = -INFINITY;
    }
  }
}

// The keys of one query row of a packed tile, as token indices; none for a row past the last token.
template <typename Score>
__device__ inline KeyRange row_keys(const int* cu_seqlens, const PackedTile& tile, int row, const Score& score) {
  const KeyRange sequence = row_sequence(cu_seqlens, tile, row);
  if constexpr (!Score::kNarrows) return sequence;
  if (sequence.begin == sequence.end) return sequence;
  const KeyRange seen = score.keys(sequence.end - sequence.begin, row - sequence.begin);
  return {sequence.begin + seen.begin, sequence.begin + seen.end};
}

// Adds to scores what the policy says; first_key and row, the first of the strip's two, count within the sequence. The
// second row is as far from the keys of a group as the first one from those of the group before.
template <int kKeys, typename Score>
__device__ inline void add_to_scores(Accumulator<kKeys>& scores, const Score& score, int head, int first_key, int row) {
  if constexpr (Score::kAdds) {
    const int nearest = row - first_key - fragment_column();
    float before[2] = {score.added(head, nearest + 8), score.added(head, nearest + 7)};
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float here = score.added(head, nearest - 8 * group - i);
        scores[group][i] += here;
        scores[group][2 + i] += before[i];
        before[i] = here;
      }
    }
  }
}

// A block of keys of one sequence as the policy wants it, from first_key on; row: the first of the strip's two.
template <int kKeys, typename Score>
__device__ inline void shape_scores(Accumulator<kKeys>& scores, const Score& score, const SequenceTile& tile, int row,
                                    int first_key) {
  add_to_scores<kKeys>(scores, score, tile.head, first_key, row);
  if constexpr (Score::kNarrows) {
    const int first = row - fragment_row();  // of the strip
    const bool seen = first_key >= score.keys(tile.length, first + 15).begin &&
                      first_key + kKeys <= score.keys(tile.length, first).end;
    if (seen) return;  // by all rows
    const KeyRange ranges[2] = {score.keys(tile.length, row), score.keys(tile.length, row + 8)};
    mask_scores<kKeys>(scores, first_key, ranges);
  }
}

// The keys that some row of a packed tile of `rows` rows from `first` on sees.
template <typename Score>
__device__ inline KeyRange tile_keys(const int* cu_seqlens, const PackedTile& tile, int first, int rows,
                                     const Score& score) {
  if constexpr (!Score::kNarrows) return tile.keys;
  return {row_keys(cu_seqlens, tile, first, score).begin,
          row_keys(cu_seqlens, tile, min(first + rows, tile.tokens) - 1, score).end};
}

// The ranges of a warp's rows taken together, to skip whole blocks of keys or the mask of a block.
struct StripKeys {
  KeyRange any;  // outside it no row sees a key
  KeyRange all;  // inside it every row sees every key

  __device__ explicit StripKeys(const KeyRange (&rows)[2])
      : any{__reduce_min_sync(~0u, min(rows[0].begin, rows[1].begin)),
            __reduce_max_sync(~0u, max(rows[0].end, rows[1].end))},
        all{__reduce_max_sync(~0u, max(rows[0].begin, rows[1].begin)),
            __reduce_min_sync(~0u, min(rows[0].end, rows[1].end))} {}
  __device__ bool sees(int begin, int end) const { return begin < any.end && end > any.begin; }
  __device__ bool sees_all(int begin, int end) const { return begin >= all.begin && end <= all.end; }
};

}  // namespace efft::cuda
