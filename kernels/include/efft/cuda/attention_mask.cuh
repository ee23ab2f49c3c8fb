// Which scores of a strip of 16 query rows count.
#pragma once

#include <cmath>

#include "efft/cuda/attention_fragments.cuh"
#include "efft/cuda/attention_lengths.cuh"

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
