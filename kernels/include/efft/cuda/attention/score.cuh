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
  // To q·k, before the scale. distance: the row less the key; at least kFarther of the longest sequence's length to
  // either side may be asked for, since tiles reach beyond a sequence's end.
  __device__ __forceinline__ float added(int /*head*/, int /*distance*/) const { return 0.f; }
};

// How far beyond a sequence's end rows and keys of a tile may lie.
constexpr int kFarther = 128;

// NARROWS: a row sees keys within `reach`. ADDS: a table says what is added by distance, made by distance_table
// (rows/positions.cuh): T5's buckets, ALiBi's slopes.
template <bool NARROWS, bool ADDS>
struct DistanceScores {
  static constexpr bool kNarrows = NARROWS;
  static constexpr bool kAdds = ADDS;

  int reach;           // keys to either side
  const float* table;  // [heads, stride], its column `origin` is distance 0; over the scale
  int origin;
  int stride;

  __device__ __forceinline__ KeyRange keys(int length, int row) const {
    if constexpr (!NARROWS) return {0, length};
    return {max(min(row, length - 1) - reach, 0), min(row + reach + 1, length)};
  }
  __device__ __forceinline__ float added(int head, int distance) const {
    if constexpr (!ADDS) return 0.f;
    return __ldg(table + static_cast<long long>(head) * stride + origin + distance);
  }
};
using WindowScores = DistanceScores<true, false>;
using BiasScores = DistanceScores<false, true>;
using WindowBiasScores = DistanceScores<true, true>;

// The keys that any of the rows [tile.row, tile.row + rows) of a tile sees: the first, down to a multiple of `step`,
// and the end.
template <typename Score>
__device__ __forceinline__ int first_key(const Score& score, const SequenceTile& tile, int step) {
  if constexpr (!Score::kNarrows) return 0;
  return score.keys(tile.length, tile.row).begin / step * step;
}

// Of the tile's 64 rows from `row` on, which a warpgroup holds.
__device__ __forceinline__ SequenceTile rows_from(const SequenceTile& tile, int row) {
  return {tile.begin, tile.length, tile.row + row, tile.head};
}

template <typename Score>
__device__ __forceinline__ int end_key(const Score& score, const SequenceTile& tile, int rows) {
  if constexpr (!Score::kNarrows) return tile.length;
  return score.keys(tile.length, min(tile.row + rows, tile.length) - 1).end;
}

}  // namespace efft::cuda
