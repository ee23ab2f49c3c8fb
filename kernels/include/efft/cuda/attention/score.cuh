// What a query's scores are: which keys it sees, and what is added to them. A policy is such a struct; kernels take it
// as a template argument, and it travels in their arguments.
#pragma once

#include "efft/cuda/attention/lengths.cuh"

namespace efft::cuda {

// Full attention. Rows and keys are counted within a sequence.
struct FullScores {
  // Whether some row sees fewer keys than its sequence has.
  static constexpr bool kNarrows = false;
  // Whether anything is added to scores.
  static constexpr bool kAdds = false;

  // The keys that a row sees, next to each other; neither bound falls from one row to the next.
  __device__ __forceinline__ KeyRange keys(int length, int /*row*/) const { return {0, length}; }
  // To q·k / sqrt(head size).
  __device__ __forceinline__ float added(int /*head*/, int /*row*/, int /*key*/) const { return 0.f; }
};

// The keys that any of the rows [tile.row, tile.row + rows) of a tile sees: the first, down to a multiple of `step`,
// and the end.
template <typename Score>
__device__ __forceinline__ int first_key(const Score& score, const SequenceTile& tile, int step) {
  if constexpr (!Score::kNarrows) return 0;
  return score.keys(tile.length, tile.row).begin / step * step;
}

template <typename Score>
__device__ __forceinline__ int end_key(const Score& score, const SequenceTile& tile, int rows) {
  if constexpr (!Score::kNarrows) return tile.length;
  return score.keys(tile.length, min(tile.row + rows, tile.length) - 1).end;
}

}  // namespace efft::cuda
