// The ring of shared-memory stages of the linear kernels; of the one for few rows, the walk over tiles and the two
// producers that fill the ring.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear/arguments.cuh"
#include "efft/cuda/linear/few_tile.cuh"
#include "efft/cuda/ptx/barrier.cuh"
#include "efft/cuda/ptx/cluster.cuh"
#include "efft/cuda/ptx/copy.cuh"

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
struct Ring {
  char* stages;
  uint64_t* full;
  uint64_t* empty;

  __device__ char* input(int stage) const { return stages + stage * Tile::kStageBytes; }
  __device__ char* weight(int stage) const { return input(stage) + Tile::kInputBytes; }
  __device__ void wait_full(RingPosition<Tile> at) const { ptx::mbarrier_wait(full + at.stage, at.phase); }
  // Until the stage's previous contents have been consumed.
  __device__ void wait_empty(RingPosition<Tile> at) const { ptx::mbarrier_wait(empty + at.stage, at.phase ^ 1); }
  // By a whole warp, one lane per block that may write into this block's stage: this one, or all that share weights.
  __device__ void release(int stage, int lane, int rank, int sharers) const {
    __syncwarp();
    if (lane < sharers) ptx::mbarrier_arrive_at(empty + stage, sharers == 1 ? rank : lane);
  }
};

// Where a block's tile and part of K lie. Outputs come fastest. A cluster holds the parts of K of one tile, or tiles
// that share copies of the weights.
template <typename Tile>
struct FewPlace {
  int rank;               // of this block in its cluster
  int split;              // which part of K
  int row, column;        // of the tile's first output
  int first_step, steps;  // stages of this part of K
  int end;                // of it, in elements
  int tokens;             // the one thing that is not known at once: it takes its time to arrive
  int first_row;          // of the cluster's tiles

  template <typename Types>
  __device__ FewPlace(const LinearArguments<Types>& a, int tokens) : tokens(tokens) {
    rank = ptx::cluster_ctarank();
    split = Tile::kSplits == 1 ? 0 : rank;
    const int index = blockIdx.x / (a.sharers * Tile::kSplits);
    const int tiles_along_n = (a.n + Tile::kColumns - 1) / Tile::kColumns;
    first_row = index / tiles_along_n * a.sharers * Tile::kRows;
    row = first_row + (rank - split) * Tile::kRows;
    column = index % tiles_along_n * Tile::kColumns;
    constexpr int kStageElements = elements_in<Types>(Tile::kStageDepth);
    const int all = (a.k + kStageElements - 1) / kStageElements;
    first_step = all * split / Tile::kSplits;
    steps = all * (split + 1) / Tile::kSplits - first_step;
    end = min(a.k, (first_step + steps) * kStageElements);
  }
  // Whether some tile of the cluster has a token.
  __device__ bool inside() const { return first_row < tokens; }
  // Steps that are begun before it is known whether there is a token at all.
  __device__ int ahead() const { return min(Tile::kStages, steps); }
};

// The weights' producer: runs ahead of the predecessor kernel as far as the ring goes, and asks the L2 cache for the
// rest. With SHARED its share of a weight tile goes to all blocks of the cluster.
template <typename Tile, bool SHARED, typename Types>
__device__ void produce_weights(const CUtensorMap* w, const LinearArguments<Types>& a, const Ring<Tile>& ring,
                                const FewPlace<Tile>& place) {
  constexpr int kBoxElements = elements_in<Types>(kBoxBytes);
  const int steps = place.steps, row = place.column;
  const int first = SHARED ? place.rank * a.weight_box : 0, stride = a.sharers * a.weight_box;
  const uint16_t peers = (1 << a.sharers) - 1;
  RingPosition<Tile> at(0);
  for (int step = 0; step < steps; ++step) {
    const int k = (place.first_step + step) * elements_in<Types>(Tile::kStageDepth);
    if (step == place.ahead() && !place.inside()) return;
    if (step == Tile::kStages)
      for (int later = k; later < place.end; later += kBoxElements)
        for (int i = first; i < Tile::kColumns; i += stride) ptx::cp_async_bulk_prefetch_tensor(w, later, row + i);
    if (step >= Tile::kStages) ring.wait_empty(at);
    uint64_t* const full = ring.full + at.stage;
    ptx::mbarrier_arrive_expect_tx(full, Tile::kStageBytes);
    char* const to = ring.weight(at.stage);
#pragma unroll
    for (int box = 0; box < Tile::kBoxes; ++box) {
      if constexpr (SHARED) {
        for (int i = first; i < Tile::kColumns; i += stride)
          ptx::cp_async_bulk_tensor_multicast(to + box * Tile::kWeightBoxBytes + i * kBoxBytes, w,
                                              k + box * kBoxElements, row + i, full, peers);
      } else {
        ptx::cp_async_bulk_tensor(to + box * Tile::kWeightBoxBytes, w, k + box * kBoxElements, row, full);
      }
    }
    at.advance(1);
  }
}

// The input's producer.
template <typename Types, typename Tile>
__device__ void produce_input(const CUtensorMap* x, const Ring<Tile>& ring, const FewPlace<Tile>& place) {
  wait_for_predecessor();
  release_successor();
  constexpr int kBoxElements = elements_in<Types>(kBoxBytes), kStageElements = elements_in<Types>(Tile::kStageDepth);
  RingPosition<Tile> at(0);
  for (int step = 0; step < place.steps; ++step) {
    if (step == place.ahead() && !place.inside()) return;
    if (step >= Tile::kStages) ring.wait_empty(at);
#pragma unroll
    for (int box = 0; box < Tile::kBoxes; ++box)
      ptx::cp_async_bulk_tensor(ring.input(at.stage) + box * Tile::kInputBoxBytes, x,
                                (place.first_step + step) * kStageElements + box * kBoxElements, place.row,
                                ring.full + at.stage);
    at.advance(1);
  }
}

}  // namespace efft::cuda
