// x · w^T of eight-bit operands on Hopper: the kernel for many rows (many_kernel.cuh), whose stages hold twice as many
// elements, with an epilogue of its own.
#pragma once

#include "efft/cuda/linear/eight_epilogue.cuh"
#include "efft/cuda/linear/many_kernel.cuh"
#include "efft/cuda/ptx/wgmma_eight.cuh"

namespace efft::cuda {

#ifdef EFFT_HOPPER

// A consumer warpgroup's tiles.
template <typename Types, typename Tile, Pointwise KIND>
__device__ __forceinline__ void consume_eight_bits(const EightBitArguments<Types>& a, const Ring<Tile>& ring,
                                                   const ManyWalk<Tile>& walk, char* warps, int tokens) {
  constexpr int kTurnBarrier = 1;   // and 2: whose turn it is to multiply
  constexpr int kGroupBarrier = 3;  // and 4: a warpgroup's columns are there, or used
  constexpr int kStride = Tile::kInTurns ? Tile::kGroups : 1;
  // Told that it is the same for a warp, the compiler keeps what follows from it, stages and descriptors, in uniform
  // registers, where the matrix unit reads them.
  const int group = __shfl_sync(~0u, threadIdx.x / 128, 0);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int row = Tile::kInTurns ? 0 : group * 64;
  using Epilogue = EightBitEpilogue<Types, Tile, KIND>;
  char* const columns = warps + 4 * Tile::kGroups * Tile::kWarpBytes + group * Tile::kColumnBytes;
  Epilogue epilogue(a, warps + warp * Tile::kWarpBytes, *reinterpret_cast<typename Epilogue::ColumnsOfTile*>(columns),
                    tokens, lane);
  typename Epilogue::Sum sums[Tile::kGroupHalves][Tile::kColumns / 2];
#pragma unroll 1
  for (int i = Tile::kInTurns ? group : 0; walk.has(i); i += kStride) {
    if (i >= kStride) ptx::barrier_sync(kGroupBarrier + group, 128);
    epilogue.begin(sums, walk.row(i) + row + warp % 4 * 16, walk.column(i), threadIdx.x % 128);
    wait_for_predecessor();  // from the second tile on without effect
    epilogue.fetch();
    if (Tile::kInTurns && i > 0) ptx::barrier_sync(kTurnBarrier + group, 256);
    multiply<typename Types::Operand, Tile>(sums, ring, walk, i, row, lane, [&] {
      if (Tile::kInTurns && walk.has(i + 1)) ptx::barrier_arrive(kTurnBarrier + 1 - group, 256);
    });
    epilogue.wait_columns();
    ptx::barrier_sync(kGroupBarrier + group, 128);
    epilogue.finish(sums);
  }
}

#endif  // EFFT_HOPPER

template <typename Types, typename Tile, Pointwise KIND>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    eight_bit_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                     const __grid_constant__ EightBitArguments<Types> a) {
#ifdef EFFT_HOPPER
  extern __shared__ __align__(1024) char shared[];
  const int tokens = __shfl_sync(~0u, *a.tokens, 0);  // readable before the predecessor has ended: see linear.cuh
  char* const warps = shared + Tile::kStages * Tile::kStageBytes;
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(warps + Tile::kOwnBytes);
  const Ring<Tile> ring{shared, barriers, barriers + Tile::kStages};
  constexpr int kFeeder = 128 * Tile::kGroups;
  if (threadIdx.x == kFeeder) open_ring(ring, &x, &w);
  __syncthreads();
  const ManyWalk<Tile> walk(a, tokens);
  if (threadIdx.x >= kFeeder) {
    ptx::setmaxnreg_dec<24>();
    if (threadIdx.x / 32 == kFeeder / 32 && ptx::elect_sync()) feed<Types>(&x, &w, ring, walk);
  } else if (walk.has(0)) {
    ptx::setmaxnreg_inc<240>();
    consume_eight_bits<Types, Tile, KIND>(a, ring, walk, warps, tokens);
  } else if (threadIdx.x == 0) {
    drain(ring, walk);
  }
#endif
}

}  // namespace efft::cuda
