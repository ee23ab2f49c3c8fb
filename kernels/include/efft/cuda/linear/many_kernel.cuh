// x · w^T for many tokens on Hopper: blocks stay on their multiprocessors and walk over tiles. One thread feeds boxes
// of x and w through the copy engine into a ring of shared-memory stages, across the borders of tiles; two warpgroups
// multiply them and finish the outputs.
#pragma once

#include "efft/cuda/linear/many_epilogue.cuh"
#include "efft/cuda/linear/many_tile.cuh"
#include "efft/cuda/linear/many_walk.cuh"
#include "efft/cuda/linear/ring.cuh"
#include "efft/cuda/ptx/wgmma.cuh"

namespace efft::cuda {

#ifdef EFFT_HOPPER

// By one thread, before the block's other threads touch the ring.
template <typename Tile>
__device__ __forceinline__ void open_ring(const Ring<Tile>& ring, const CUtensorMap* x, const CUtensorMap* w) {
  for (int stage = 0; stage < Tile::kStages; ++stage) {
    ptx::mbarrier_init(ring.full + stage, 1);
    ptx::mbarrier_init(ring.empty + stage, 4 * Tile::kReaders);
  }
  ptx::fence_mbarrier_init();
  ptx::prefetch_tensormap(w);
  ptx::prefetch_tensormap(x);
}

// By one thread of a block that has no tile: there is nothing to do, but shared memory must outlive the copies.
template <typename Tile>
__device__ __forceinline__ void drain(const Ring<Tile>& ring, const ManyWalk<Tile>& walk) {
  for (int stage = 0; stage < walk.ahead(); ++stage) ptx::mbarrier_wait(ring.full + stage, 0);
}

// One thread. The weights of the first stages are requested before the predecessor has ended, and those stages are
// filled before the number of tokens has arrived.
template <typename Types, typename Tile>
__device__ void feed(const CUtensorMap* x, const CUtensorMap* w, const Ring<Tile>& ring, const ManyWalk<Tile>& walk) {
  const auto weights = [&](int stage, int k, int column) {
    ptx::mbarrier_arrive_expect_tx(ring.full + stage, Tile::kStageBytes);
    ptx::cp_async_bulk_tensor(ring.weight(stage), w, k, column, ring.full + stage);
  };
  const auto input = [&](int stage, const ManyStep<Types, Tile>& step) {
    ptx::cp_async_bulk_tensor(ring.input(stage), x, step.k, step.row, ring.full + stage);
  };
  ManyStep<Types, Tile> step(walk);
  for (int stage = 0; stage < walk.ahead(); ++stage) weights(stage, stage * step.kDepth, step.column);
  wait_for_predecessor();
  release_successor();
  for (int stage = 0; stage < walk.ahead(); ++stage, step.next(walk)) input(stage, step);
  for (RingPosition<Tile> at(walk.ahead()); walk.has(step.tile); step.next(walk), at.advance(1)) {
    ring.wait_empty(at);
    weights(at.stage, step.k, step.column);
    input(at.stage, step);
  }
}

// The products of the block's tile of that number. A stage is given back once the products of the next have been
// queued behind its own: the matrix unit never waits for that.
template <typename Operand, typename Tile, typename Sum, typename LastStage>
__device__ __forceinline__ void multiply(Sum (&sums)[Tile::kGroupHalves][Tile::kColumns / 2], const Ring<Tile>& ring,
                                         const ManyWalk<Tile>& walk, int tile, int row, int lane,
                                         LastStage&& last_stage) {
  constexpr int kRank = 0, kSharers = 1;      // no cluster: no other block writes into a stage
  constexpr int kHalf = 64 * kBoxBytes / 16;  // of a tile's rows, in a descriptor's units
  RingPosition<Tile> at(tile * walk.steps);
  int previous = 0;
#pragma unroll 1
  for (int step = 0; step < walk.steps; ++step) {
    ring.wait_full(at);
    if (step + 1 == walk.steps) last_stage();
    const uint64_t a = ptx::tile_descriptor(ring.input(at.stage) + row * kBoxBytes);
    const uint64_t b = ptx::tile_descriptor(ring.weight(at.stage));
    ptx::wgmma_fence();
#pragma unroll
    for (int i = 0; i < kBoxBytes / ptx::kStepBytes; ++i)
#pragma unroll
      for (int half = 0; half < Tile::kGroupHalves; ++half)
        ptx::Wgmma<Operand, Tile::kColumns>::shared(sums[half], a + 2 * i + half * kHalf, b + 2 * i, true);
    ptx::wgmma_commit_group();
    if (step > 0) {
      ptx::wgmma_wait_group<1>();
      ring.release(previous, lane, kRank, kSharers);
    }
    previous = at.stage;
    at.advance(1);
  }
  ptx::wgmma_wait_group<0>();
  ring.release(previous, lane, kRank, kSharers);
}

// A consumer warpgroup's tiles.
template <typename Types, typename Tile, Pointwise KIND, bool NORMALISE>
__device__ __forceinline__ void consume_tiles(const LinearArguments<Types>& a, const Ring<Tile>& ring,
                                              const ManyWalk<Tile>& walk, TileNorm<Tile>& norm, char* warps,
                                              int tokens) {
  constexpr int kTurnBarrier = 1;  // and 2: whose turn it is to multiply
  using Barriers = TileNormBarriers<Tile>;
  constexpr int kStride = Tile::kInTurns ? Tile::kGroups : 1;
  const int warp = threadIdx.x / 32, group = warp / 4, lane = threadIdx.x % 32;
  const int row = Tile::kInTurns ? 0 : group * 64;
  ManyEpilogue<Types, Tile, KIND, NORMALISE> epilogue(a, warps + warp * Tile::kWarpBytes, tokens, lane);
  float sums[Tile::kGroupHalves][Tile::kColumns / 2];
#pragma unroll 1
  for (int i = Tile::kInTurns ? group : 0; walk.has(i); i += kStride) {
    // In place of zeros; parameters, so no predecessor wrote them.
    epilogue.begin(sums, walk.row(i) + row + warp % 4 * 16, walk.column(i));
    wait_for_predecessor();  // from the second tile on without effect
    epilogue.fetch();
    // A stage's barrier tells only this use from the one before: a warpgroup may wait for its first stage once the
    // other has met all of its own.
    if (Tile::kInTurns && i > 0) ptx::barrier_sync(kTurnBarrier + group, 256);
    multiply<typename Types::Operand, Tile>(sums, ring, walk, i, row, lane, [&] {
      if (Tile::kInTurns && walk.has(i + 1)) ptx::barrier_arrive(kTurnBarrier + 1 - group, 256);
    });
    if constexpr (NORMALISE) ptx::barrier_sync(Barriers::kFilled, Barriers::kThreads);
    epilogue.finish(sums, norm, row + warp % 4 * 16);
    if (NORMALISE && walk.has(i + 1)) ptx::barrier_arrive(Barriers::kUsed, Barriers::kThreads);
  }
}

#endif  // EFFT_HOPPER

template <typename Types, typename Tile, Pointwise KIND, bool NORMALISE>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    many_rows_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                     const __grid_constant__ LinearArguments<Types> a) {
#ifdef EFFT_HOPPER
  extern __shared__ __align__(1024) char shared[];
  const int tokens = *a.tokens;  // readable before the predecessor has ended: see many.cuh
  char* const warps = shared + Tile::kStages * Tile::kStageBytes;
  TileNorm<Tile>& norm = *reinterpret_cast<TileNorm<Tile>*>(warps + 4 * Tile::kGroups * Tile::kWarpBytes);
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(&norm + 1);
  const Ring<Tile> ring{shared, barriers, barriers + Tile::kStages};
  constexpr int kFeeder = 128 * Tile::kGroups;
  if (threadIdx.x == kFeeder) {
    ptx::mbarrier_init(&norm.arrived, 1);
    open_ring(ring, &x, &w);
  }
  __syncthreads();
  const ManyWalk<Tile> walk(a, tokens);
  if (threadIdx.x >= kFeeder) {
    ptx::setmaxnreg_dec<NORMALISE ? 40 : 24>();
    if (threadIdx.x / 32 == kFeeder / 32) {
      if (ptx::elect_sync()) feed<Types>(&x, &w, ring, walk);
    } else if constexpr (NORMALISE) {
      fill_norms(a, walk, norm, warps, tokens, static_cast<int>(threadIdx.x) - kFeeder - 32);
    }
  } else if (walk.has(0)) {
    ptx::setmaxnreg_inc<NORMALISE ? 232 : 240>();
    consume_tiles<Types, Tile, KIND, NORMALISE>(a, ring, walk, norm, warps, tokens);
  } else if (threadIdx.x == 0) {
    drain(ring, walk);
  }
#endif
}

}  // namespace efft::cuda
