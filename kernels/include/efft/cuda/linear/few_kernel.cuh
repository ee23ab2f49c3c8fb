// x · w^T of few rows on Hopper: two producer warps feed tiles of x and w through the copy engine into a ring of
// shared-memory stages, consumer warpgroups multiply them, and the epilogue finishes them (arguments.cuh says how).
//
// Made for chains of small kernels: the weights of the first stages are requested before the predecessor on the stream
// has finished, and a LayerNorm of the input costs no kernel of its own: the product that makes the rows leaves their
// moments too (few_norm.cuh).
#pragma once

#include "efft/cuda/linear/few_epilogue.cuh"
#include "efft/cuda/linear/few_exchange.cuh"
#include "efft/cuda/linear/ring.cuh"
#include "efft/cuda/ptx/wgmma.cuh"

namespace efft::cuda {

#ifdef EFFT_HOPPER

// One stage.
template <typename Operand, typename Tile>
__device__ __forceinline__ void multiply_stage(float (&sums)[Tile::kGroupColumns / 2], const char* input,
                                               const char* weight, bool first) {
#pragma unroll
  for (int box = 0; box < Tile::kBoxes; ++box)
#pragma unroll
    for (int step = 0; step < kBoxBytes / ptx::kStepBytes; ++step) {
      const uint64_t a = ptx::tile_descriptor(input + box * Tile::kInputBoxBytes) + 2 * step;
      const uint64_t b = ptx::tile_descriptor(weight + box * Tile::kWeightBoxBytes) + 2 * step;
      ptx::Wgmma<Operand, Tile::kGroupColumns>::shared(sums, a, b, !first || box > 0 || step > 0);
    }
}

// Which rows and columns of the tile a warpgroup makes, and which stages it takes.
template <typename Tile>
struct ConsumerRole {
  int row, column, k_group, warp, lane;

  __device__ explicit ConsumerRole(int thread)
      : row(thread / 128 / Tile::kColumnGroups % Tile::kRowGroups * 64),
        column(thread / 128 % Tile::kColumnGroups * Tile::kGroupColumns),
        k_group(thread / 128 / (Tile::kColumnGroups * Tile::kRowGroups)),
        warp(thread / 32 % 4),
        lane(thread % 32) {}
  // The first of the two rows that this thread's accumulators belong to; the other is 8 rows below.
  __device__ int accumulator_row() const { return row + warp * 16 + lane / 4; }
};

// The K loop of one warpgroup: stages k_group, k_group + kKGroups, ... A stage is given back when the next one's
// products have been queued behind its own. The last need not be: nobody waits for it.
template <typename Operand, typename Tile>
__device__ void accumulate(float (&sums)[Tile::kGroupColumns / 2], const Ring<Tile>& ring, const FewPlace<Tile>& place,
                           const ConsumerRole<Tile>& role, int sharers) {
#pragma unroll
  for (float& sum : sums) sum = 0.f;  // a K group may have no stage at all
  RingPosition<Tile> at(role.k_group);
  int previous = -1;
  for (int step = role.k_group; step < place.steps; step += Tile::kKGroups) {
    ring.wait_full(at);
    ptx::wgmma_fence();
    multiply_stage<Operand, Tile>(sums, ring.input(at.stage) + role.row * kBoxBytes,
                                  ring.weight(at.stage) + role.column * kBoxBytes, step == role.k_group);
    ptx::wgmma_commit_group();
    if constexpr (Tile::kStages < 4 * Tile::kKGroups) {  // too few to keep one longer
      ptx::wgmma_wait_group<0>();
      ring.release(at.stage, role.lane, place.rank, sharers);
    } else {
      ptx::wgmma_wait_group<1>();
      if (previous >= 0) ring.release(previous, role.lane, place.rank, sharers);
      previous = at.stage;
    }
    at.advance(Tile::kKGroups);
  }
  ptx::wgmma_wait_group<0>();
}

template <typename Types, typename Tile, bool NORMALISE>
__device__ void consume(const LinearArguments<Types>& a, const Ring<Tile>& ring, const FewPlace<Tile>& place,
                        const TileColumns<Tile>& columns, RowNorm* row_norms, const Exchange<Tile>& exchange) {
  const int thread = threadIdx.x, row = place.row + place.split * Tile::kShareRows;
  const ConsumerRole<Tile> role(thread);
  columns.fill(a, place.column, thread);
  wait_for_predecessor();
  Residual<Types, Tile> residual;
  if constexpr (!NORMALISE) residual.load(a, row, place.column, place.tokens, thread);
  float accumulators[Tile::kGroupColumns / 2];
  accumulate<typename Types::Operand, Tile>(accumulators, ring, place, role, a.sharers);
  // From here on columns and row norms are there, and nobody reads the stages any more.
  ptx::barrier_sync(kStagesBarrier, Tile::kConsumers + (NORMALISE ? kNormThreads : 0));
  const int part = place.split * Tile::kKGroups + role.k_group;
  if constexpr (Tile::kSplits > 1) {
    exchange.send(accumulators, part, role.accumulator_row(), role.column, role.lane);
    exchange.wait();
  } else {
    lay_down<Tile>(accumulators, exchange.sums + part * Tile::kRows * Tile::kSumsPitch, role.accumulator_row(),
                   role.column, role.lane);
    ptx::barrier_sync(kSumsBarrier, Tile::kConsumers);
  }
  finish_tile<Types, Tile, NORMALISE>(a, exchange.sums, row_norms, residual, columns, row, place.column, place.tokens,
                                      thread);
}

#endif  // EFFT_HOPPER

template <typename Tile>
constexpr int few_threads(bool normalise) {
  return Tile::kConsumers + Tile::kProducers + (normalise ? kNormThreads : 0);
}

template <typename Types, typename Tile, bool NORMALISE>
__global__ void __launch_bounds__(few_threads<Tile>(NORMALISE), Tile::kBlocks)
    few_rows_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                    const __grid_constant__ LinearArguments<Types> a) {
#ifdef EFFT_HOPPER
  extern __shared__ __align__(1024) char shared[];
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + Tile::kStages * Tile::kStageBytes);
  const Ring<Tile> ring{shared, barriers, barriers + Tile::kStages};
  constexpr int kBarriers = 2 * Tile::kStages + (Tile::kSplits > 1 ? 2 : 0);  // an even number, for alignment
  const TileColumns<Tile> columns(reinterpret_cast<float*>(barriers + kBarriers));
  RowNorm* const row_norms = reinterpret_cast<RowNorm*>(columns.bias + 4 * Tile::kColumns);
  const Exchange<Tile> exchange{
      barriers + 2 * Tile::kStages,
      reinterpret_cast<float*>(Tile::kSplits > 1 ? reinterpret_cast<char*>(row_norms + Tile::kRows) : shared)};
  const FewPlace<Tile> place(a, *a.tokens);  // older than the predecessor
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(&x);
    ptx::prefetch_tensormap(&w);
    constexpr int kReaders = Tile::kConsumers / 32 / Tile::kKGroups;
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      ptx::mbarrier_init(ring.full + stage, 1);
      ptx::mbarrier_init(ring.empty + stage, kReaders * a.sharers);
    }
    if constexpr (Tile::kSplits > 1) exchange.open();
    ptx::fence_mbarrier_init();
  }
  if (a.sharers * Tile::kSplits > 1) ptx::barrier_cluster_sync();
  __syncthreads();
  const int helper = static_cast<int>(threadIdx.x) - Tile::kConsumers;
  if (helper < 0) {
    // The same for all blocks of a cluster. Without a token, shared memory must but outlive the copies.
    if (place.inside())
      consume<Types, Tile, NORMALISE>(a, ring, place, columns, row_norms, exchange);
    else if (threadIdx.x == 0)
      for (int stage = 0; stage < place.ahead(); ++stage) ptx::mbarrier_wait(ring.full + stage, 0);
  } else if (helper < 32) {
    if (ptx::elect_sync())
      a.sharers > 1 ? produce_weights<Tile, true>(&w, a, ring, place)
                    : produce_weights<Tile, false>(&w, a, ring, place);
  } else if (helper < Tile::kProducers) {
    if (ptx::elect_sync()) produce_input<Types>(&x, ring, place);
  } else if constexpr (NORMALISE) {
    if (place.inside()) join_rows<Tile>(a, place, row_norms, helper - Tile::kProducers);
  }
  __syncwarp();
  // A block's shared memory must outlive its peers' copies and arrivals. What the parts of K send each other, each
  // has waited for.
  if (a.sharers > 1) ptx::barrier_cluster_sync();
#endif
}

}  // namespace efft::cuda
