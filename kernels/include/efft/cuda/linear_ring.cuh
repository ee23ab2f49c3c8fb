// The Hopper linear kernel's ring of shared-memory stages, the walk over tiles, and the two producers that fill the
// ring.
#pragma once

#include "efft/cuda/hopper.cuh"
#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear_arguments.cuh"
#include "efft/cuda/linear_tile.cuh"

namespace efft::cuda {

// A place in the ring. Kept by adding, not by dividing a counter: a producer is one thread, and a few dozen dependent
// instructions a stage would make it the slowest part of the kernel.
template <typename Tile>
struct RingPosition {
  int stage;
  uint32_t phase;

  __device__ explicit RingPosition(int step) : stage(step % Tile::kStages), phase(step / Tile::kStages & 1) {}
  __device__ __forceinline__ void advance(int steps) {
    stage += steps;
    if (stage >= Tile::kStages) {
      stage -= Tile::kStages;
      phase ^= 1;
    }
  }
};

// A stage holds its boxes of the input, then its boxes of the weights.
template <typename Tile>
struct LinearRing {
  char* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ char* input(int stage) const { return stages + stage * Tile::kStageBytes; }
  __device__ char* weight(int stage) const { return input(stage) + Tile::kInputBytes; }
  __device__ void wait_full(RingPosition<Tile> at) const { hopper::barrier_wait(full + at.stage, at.phase); }
  // Until the stage's previous contents have been consumed.
  __device__ void wait_empty(RingPosition<Tile> at) const { hopper::barrier_wait(empty + at.stage, at.phase ^ 1); }
  // By a whole warp, one lane per block of the cluster: any of them may write into this block's stage.
  __device__ void release(int stage, int lane, int cluster_size) const {
    __syncwarp();
    if (lane < cluster_size) hopper::barrier_arrive_at(empty + stage, lane);
  }
};

// Where a block's tile lies: clusters take cluster tiles, outputs fastest.
template <typename Tile>
struct LinearPlace {
  int rank_row, rank_column;  // of this block in its cluster
  int row, column;            // of the tile's first output
  int tokens;
  bool inside;  // the cluster's tile has a token

  template <typename T>
  __device__ LinearPlace(const LinearArguments<T>& a, int tokens) : tokens(tokens) {
    const int rank = hopper::cluster_rank(), index = blockIdx.x / (a.cluster_rows * a.cluster_columns);
    rank_row = rank / a.cluster_columns;
    rank_column = rank % a.cluster_columns;
    const int columns = Tile::kColumns * a.cluster_columns, tiles_along_n = (a.n + columns - 1) / columns;
    const int cluster_row = index / tiles_along_n * a.cluster_rows;
    inside = cluster_row * Tile::kRows < tokens;
    row = (cluster_row + rank_row) * Tile::kRows;
    column = (index % tiles_along_n * a.cluster_columns + rank_column) * Tile::kColumns;
  }
};

template <typename Tile, typename T>
__device__ int ring_steps(const LinearArguments<T>& a) {
  return (a.k + Tile::kStageDepth - 1) / Tile::kStageDepth;
}

// This block's share of the next kernel's weights.
template <typename T>
__device__ void prefetch_next(const LinearArguments<T>& a) {
  if (a.next_weights == nullptr) return;
  const int share = (a.next_bytes / static_cast<int>(gridDim.x) + 15) / 16 * 16;
  const int start = share * static_cast<int>(blockIdx.x), bytes = min(share, a.next_bytes - start);
  if (bytes > 0) hopper::prefetch_bytes(static_cast<const char*>(a.next_weights) + start, bytes);
}

// The weights' producer: runs ahead of the predecessor kernel as far as the ring goes, and asks the L2 cache for the
// rest. Its share of a weight tile goes to all blocks of its cluster column.
template <typename Tile, bool SHARED, typename T>
__device__ void produce_weights(const CUtensorMap* w, const LinearArguments<T>& a, const LinearRing<Tile>& ring,
                                const LinearPlace<Tile>& place) {
  const int steps = ring_steps<Tile>(a), row = place.column;
  const int first = SHARED ? place.rank_row * a.weight_box : 0, stride = a.cluster_rows * a.weight_box;
  uint16_t peers = 0;
  for (int i = 0; i < a.cluster_rows; ++i) peers |= 1 << (i * a.cluster_columns + place.rank_column);
  RingPosition<Tile> at(0);
  for (int step = 0; step < steps; ++step) {
    const int k = step * Tile::kStageDepth;
    if (step == min(Tile::kStages, steps - 1)) prefetch_next(a);
    if (step == Tile::kStages)
      for (int later = k; later < a.k; later += kLinearDepth)
        for (int i = first; i < Tile::kColumns; i += stride) hopper::prefetch_box(w, later, row + i);
    if (step >= Tile::kStages) ring.wait_empty(at);
    uint64_t* const full = ring.full + at.stage;
    hopper::barrier_expect(full, Tile::kStageBytes);
    char* const to = ring.weight(at.stage);
#pragma unroll
    for (int box = 0; box < Tile::kBoxes; ++box) {
      if constexpr (SHARED) {
        for (int i = first; i < Tile::kColumns; i += stride)
          hopper::copy_box_to(to + box * Tile::kWeightBoxBytes + i * 128, w, k + box * kLinearDepth, row + i, full,
                              peers);
      } else {
        hopper::copy_box(to + box * Tile::kWeightBoxBytes, w, k + box * kLinearDepth, row, full);
      }
    }
    at.advance(1);
  }
}

// The input's producer. Its share of an input tile goes to all blocks of its cluster row.
template <typename Tile, bool SHARED, typename T>
__device__ void produce_input(const CUtensorMap* x, const LinearArguments<T>& a, const LinearRing<Tile>& ring,
                              const LinearPlace<Tile>& place) {
  const int steps = ring_steps<Tile>(a);
  const int first = SHARED ? Tile::kRows / a.cluster_columns * place.rank_column : 0, row = place.row + first;
  const uint16_t peers = ((1 << a.cluster_columns) - 1) << (place.rank_row * a.cluster_columns);
  wait_for_predecessor();
  release_successor();
  RingPosition<Tile> at(0);
  for (int step = 0; step < steps; ++step) {
    if (step >= Tile::kStages) ring.wait_empty(at);
    uint64_t* const full = ring.full + at.stage;
    char* const to = ring.input(at.stage) + first * 128;
#pragma unroll
    for (int box = 0; box < Tile::kBoxes; ++box) {
      const int k = step * Tile::kStageDepth + box * kLinearDepth;
      if constexpr (SHARED)
        hopper::copy_box_to(to + box * Tile::kInputBoxBytes, x, k, row, full, peers);
      else
        hopper::copy_box(to + box * Tile::kInputBoxBytes, x, k, row, full);
    }
    at.advance(1);
  }
}

}  // namespace efft::cuda
