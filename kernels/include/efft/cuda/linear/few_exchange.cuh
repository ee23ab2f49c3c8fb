// What the warps of a tile, and the blocks of a split tile, leave for each other at the end of the K loop.
#pragma once

#include "efft/cuda/linear/few_tile.cuh"
#include "efft/cuda/ptx/barrier.cuh"
#include "efft/cuda/ptx/cluster.cuh"

namespace efft::cuda {

// Numbers of named barriers; 0 is __syncthreads.
constexpr int kStagesBarrier = 1, kSumsBarrier = 2;

// Shared memory of one block, for its share of the tile's rows. In a split tile the blocks write into each other's, and
// a barrier counts the bytes: the only thing that they wait for.
template <typename Tile>
struct Exchange {
  uint64_t* arrived;  // split tiles only
  float* sums;        // [kParts, kShareRows, kSumsPitch]

  // By one thread, before any block of the cluster sends.
  __device__ void open() const {
    ptx::mbarrier_init(arrived, 1);
    ptx::mbarrier_arrive_expect_tx(arrived, Tile::kParts * Tile::kShareRows * Tile::kColumns * 4);
  }
  __device__ void wait() const { ptx::mbarrier_wait(arrived, 0); }

  // A thread's accumulators of rows `row` and `row` + 8, to the blocks that finish those rows. A block's rank in its
  // cluster is its part of K.
  __device__ __forceinline__ void send(const float (&accumulators)[Tile::kGroupColumns / 2], int part, int row,
                                       int column, int lane) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + half * 8, owner = r / Tile::kShareRows;
      if (r >= Tile::kRows) break;
      const float* const here =
          sums + (part * Tile::kShareRows + r % Tile::kShareRows) * Tile::kSumsPitch + column + lane % 4 * 2;
      const uint32_t to = ptx::mapa(here, owner), counter = ptx::mapa(arrived, owner);
#pragma unroll
      for (int i = 0; i < Tile::kGroupColumns / 8; ++i)
        ptx::st_async(to + i * 32, make_float2(accumulators[i * 4 + half * 2], accumulators[i * 4 + half * 2 + 1]),
                      counter);
    }
  }
};

}  // namespace efft::cuda
