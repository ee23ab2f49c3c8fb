// Which tiles of the kernel for many rows a block makes, one after the other.
#pragma once

#include "efft/cuda/linear/arguments.cuh"
#include "efft/cuda/linear/tensor_map.cuh"

namespace efft::cuda {

// The tiles of one block: those whose number is the block's modulo the number of blocks, outputs fastest. Where a tile
// lies does not depend on the number of tokens, only whether there is one.
template <typename Tile>
struct ManyWalk {
  int along_n, tiles, steps;  // steps: of a tile along K

  template <typename Types>
  __device__ ManyWalk(const LinearArguments<Types>& a, int tokens)
      : along_n((a.n + Tile::kColumns - 1) / Tile::kColumns),
        tiles((tokens + Tile::kRows - 1) / Tile::kRows * along_n),
        steps((a.k + elements_in<Types>(kBoxBytes) - 1) / elements_in<Types>(kBoxBytes)) {}
  __device__ int tile(int i) const { return static_cast<int>(blockIdx.x + i * gridDim.x); }
  __device__ bool has(int i) const { return tile(i) < tiles; }
  // First token and output of the block's i-th tile.
  __device__ int row(int i) const { return tile(i) / along_n * Tile::kRows; }
  __device__ int column(int i) const { return tile(i) % along_n * Tile::kColumns; }
  // Steps that are begun before it is known whether there is a tile at all.
  __device__ int ahead() const { return min(Tile::kStages, steps); }
};

// A step of a block's tiles, which follow each other without a gap.
template <typename Types, typename Tile>
struct ManyStep {
  static constexpr int kDepth = elements_in<Types>(kBoxBytes);  // a stage takes one box of each row
  int tile = 0, k = 0, row, column;

  __device__ explicit ManyStep(const ManyWalk<Tile>& walk) : row(walk.row(0)), column(walk.column(0)) {}
  __device__ void next(const ManyWalk<Tile>& walk) {
    k += kDepth;
    if (k < walk.steps * kDepth) return;
    k = 0;
    ++tile;
    row = walk.row(tile), column = walk.column(tile);
  }
};

}  // namespace efft::cuda
