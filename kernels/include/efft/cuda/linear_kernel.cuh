// x · w^T for Hopper: two producer warps feed tiles of x and w through the copy engine into a ring of shared-memory
// stages, consumer warpgroups multiply them, and the epilogue finishes them (linear_arguments.cuh says how).
//
// Made for chains of small kernels: the weights of the first stages are requested before the predecessor on the stream
// has finished, and a LayerNorm of the input costs no kernel of its own. Where NORMALISE is set, a few warps read the
// input's rows from the stages as they pass, to take their means and variances.
#pragma once

#include "efft/cuda/linear_epilogue.cuh"
#include "efft/cuda/linear_ring.cuh"
#include "efft/cuda/wgmma.cuh"

namespace efft::cuda {

#ifdef EFFT_HOPPER

// Numbers of named barriers; 0 is __syncthreads.
constexpr int kColumnsBarrier = 1, kStagesBarrier = 2, kSumsBarrier = 3;

// One stage: steps of 16 along K.
template <typename T, typename Tile>
__device__ __forceinline__ void multiply_stage(float (&sums)[Tile::kGroupColumns / 2], const char* input,
                                               const char* weight, bool first) {
#pragma unroll
  for (int box = 0; box < Tile::kBoxes; ++box)
#pragma unroll
    for (int step = 0; step < kLinearDepth / 16; ++step) {
      const uint64_t a = hopper::tile_descriptor(input + box * Tile::kInputBoxBytes) + 2 * step;
      const uint64_t b = hopper::tile_descriptor(weight + box * Tile::kWeightBoxBytes) + 2 * step;
      hopper::Wgmma<T, Tile::kGroupColumns>::run(sums, a, b, !first || box > 0 || step > 0);
    }
}

// Which columns of the tile a warpgroup makes, and which stages it takes.
template <typename Tile>
struct ConsumerRole {
  int column, k_group, warp, lane;

  __device__ explicit ConsumerRole(int thread)
      : column(thread / 128 % Tile::kColumnGroups * Tile::kGroupColumns),
        k_group(thread / 128 / Tile::kColumnGroups),
        warp(thread / 32 % 4),
        lane(thread % 32) {}
};

// The K loop of one warpgroup: stages k_group, k_group + kKGroups, ... Each is given back as soon as its products are
// done: these tiles wait for data, not for the matrix unit.
template <typename T, typename Tile>
__device__ void accumulate(float (&sums)[Tile::kGroupColumns / 2], const LinearRing<Tile>& ring, int steps,
                           const ConsumerRole<Tile>& role, int cluster_size) {
#pragma unroll
  for (float& sum : sums) sum = 0.f;  // a K group may have no stage at all
  RingPosition<Tile> at(role.k_group);
  for (int step = role.k_group; step < steps; step += Tile::kKGroups) {
    ring.wait_full(at);
    hopper::wgmma_begin();
    multiply_stage<T, Tile>(sums, ring.input(at.stage), ring.weight(at.stage) + role.column * 128,
                            step == role.k_group);
    hopper::wgmma_commit();
    hopper::wgmma_wait<0>();
    ring.release(at.stage, role.lane, cluster_size);
    at.advance(Tile::kKGroups);
  }
}

template <typename T, typename Tile, bool NORMALISE>
__device__ void consume(const LinearArguments<T>& a, const LinearRing<Tile>& ring, const LinearPlace<Tile>& place,
                        const TileColumns<Tile>& columns, const RowNorm* row_norms) {
  const int thread = threadIdx.x;
  const ConsumerRole<Tile> role(thread);
  columns.fill(a, place.column, thread);
  wait_for_predecessor();
  Residual<T, Tile> residual;
  if constexpr (!NORMALISE) residual.load(a, place.row, place.column, place.tokens, thread);
  float accumulators[Tile::kGroupColumns / 2];
  accumulate<T, Tile>(accumulators, ring, ring_steps<Tile>(a), role, a.cluster_rows * a.cluster_columns);
  // Nobody reads the stages any more, and the row norms are there.
  hopper::named_sync(kStagesBarrier, Tile::kConsumers + (NORMALISE ? Tile::kMomentThreads : 0));
  float* const sums = reinterpret_cast<float*>(ring.stages);
  lay_down<Tile>(accumulators, sums + role.k_group * Tile::kRows * Tile::kSumsPitch, role.warp * 16 + role.lane / 4,
                 role.column, role.lane);
  hopper::named_sync(kSumsBarrier, Tile::kConsumers);
  finish_tile<T, Tile, NORMALISE>(a, sums, row_norms, residual, columns, place.row, place.column, place.tokens, thread);
}

// Sums of a row's elements and of their squares, both less a pivot near the row's mean: without one the variance would
// cancel in rows far from zero. Even and odd elements apart, which shortens the chains of additions.
struct ShiftedSums {
  float pivot;
  float2 sum, squares;

  __device__ __forceinline__ void add(float2 v) {
    const float x = v.x - pivot, y = v.y - pivot;
    sum.x += x, sum.y += y;
    squares.x = fmaf(x, x, squares.x), squares.y = fmaf(y, y, squares.y);
  }
};

__device__ __forceinline__ float2 unpack(uint32_t pair, __half) {
  return __half22float2(reinterpret_cast<const __half2&>(pair));
}
__device__ __forceinline__ float2 unpack(uint32_t pair, __nv_bfloat16) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}

template <int LANES>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int step = 1; step < LANES; step *= 2) x += __shfl_xor_sync(0xffffffff, x, step);
  return x;
}

// A lane's part of a row in one box: LANES neighbouring lanes share the row's 64 elements.
template <typename T, int LANES>
struct RowPart {
  static constexpr int kChunks = 8 / LANES;
  uint4 chunks[kChunks];

  __device__ __forceinline__ RowPart(const char* box, int row, int lane) {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      const int chunk = (lane % LANES * kChunks + i) ^ (row & 7);  // the copy engine's swizzle
      chunks[i] = *reinterpret_cast<const uint4*>(box + row * 128 + chunk * 16);
    }
  }
  template <typename Visit>
  __device__ __forceinline__ void each(Visit&& visit) const {
#pragma unroll
    for (int i = 0; i < kChunks; ++i) {
      visit(unpack(chunks[i].x, T{}));
      visit(unpack(chunks[i].y, T{}));
      visit(unpack(chunks[i].z, T{}));
      visit(unpack(chunks[i].w, T{}));
    }
  }
};

// The warps that take the input rows' moments, kMomentLanes lanes a row, and leave scale and shift in shared memory.
template <typename T, typename Tile>
__device__ void take_moments(const LinearArguments<T>& a, const LinearRing<Tile>& ring, const LinearPlace<Tile>& place,
                             RowNorm* row_norms, int thread) {
  constexpr int kLanes = Tile::kMomentLanes;
  const int lane = thread % 32, row = thread / kLanes, steps = ring_steps<Tile>(a);
  wait_for_predecessor();
  RingPosition<Tile> at(0);
  ShiftedSums sums{};
  for (int step = 0; step < steps; ++step, at.advance(1)) {
    ring.wait_full(at);
#pragma unroll
    for (int box = 0; box < Tile::kBoxes; ++box) {
      if (step * Tile::kStageDepth + box * kLinearDepth >= a.k) break;
      const RowPart<T, kLanes> part(ring.input(at.stage) + box * Tile::kInputBoxBytes, row, lane);
      if (box == 0 && step == 0) {  // the pivot: the mean of the first 64
        float2 first{};
        part.each([&](float2 v) { first.x += v.x, first.y += v.y; });
        sums.pivot = sum_lanes<kLanes>(first.x + first.y) * (1.f / kLinearDepth);
      }
      part.each([&](float2 v) { sums.add(v); });
    }
    ring.release(at.stage, lane, a.cluster_rows * a.cluster_columns);
  }
  const float width = static_cast<float>(a.k);
  const float offset = sum_lanes<kLanes>(sums.sum.x + sums.sum.y) / width;
  const float squares = sum_lanes<kLanes>(sums.squares.x + sums.squares.y) / width;
  const float scale = rsqrtf(fmaxf(squares - offset * offset, 0.f) + a.norm.epsilon);
  const RowNorm norm{scale, -(sums.pivot + offset) * scale};
  if (lane % kLanes == 0) {
    row_norms[row] = norm;
    if (place.column == 0 && place.row + row < place.tokens) a.norm.rows[place.row + row] = norm;
  }
  hopper::named_arrive(kStagesBarrier, Tile::kConsumers + Tile::kMomentThreads);
}

#endif  // EFFT_HOPPER

template <typename Tile>
constexpr int linear_threads(bool normalise) {
  return Tile::kConsumers + Tile::kProducers + (normalise ? Tile::kMomentThreads : 0);
}

template <typename T, typename Tile, bool NORMALISE>
__global__ void __launch_bounds__(linear_threads<Tile>(NORMALISE), Tile::kBlocks)
    linear_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
                  const __grid_constant__ LinearArguments<T> a) {
#ifdef EFFT_HOPPER
  extern __shared__ __align__(1024) char shared[];
  uint64_t* const barriers = reinterpret_cast<uint64_t*>(shared + Tile::kStages * Tile::kStageBytes);
  const LinearRing<Tile> ring{shared, barriers, barriers + Tile::kStages};
  const TileColumns<Tile> columns(reinterpret_cast<float*>(barriers + 2 * Tile::kStages));
  RowNorm* const row_norms = reinterpret_cast<RowNorm*>(columns.bias + 4 * Tile::kColumns);
  const int cluster_size = a.cluster_rows * a.cluster_columns;
  const LinearPlace<Tile> place(a, *a.tokens);  // readable before the predecessor has ended: see linear.cuh
  if (!place.inside) {                          // the same for all blocks of a cluster
    wait_for_predecessor();
    return;
  }
  if (threadIdx.x == 0) {
    hopper::prefetch_map(&x);
    hopper::prefetch_map(&w);
    constexpr int kReaders = 4 * Tile::kColumnGroups + (NORMALISE ? Tile::kMomentThreads / 32 : 0);
    for (int stage = 0; stage < Tile::kStages; ++stage) {
      hopper::barrier_init(ring.full + stage, 1);
      hopper::barrier_init(ring.empty + stage, kReaders * cluster_size);
    }
    hopper::barrier_init_fence();
  }
  if (cluster_size > 1) hopper::cluster_sync();
  __syncthreads();

  const int helper = static_cast<int>(threadIdx.x) - Tile::kConsumers;
  if (helper < 0) {
    consume<T, Tile, NORMALISE>(a, ring, place, columns, row_norms);
  } else if (helper < 32) {
    if (hopper::elect_lane())
      a.cluster_rows > 1 ? produce_weights<Tile, true>(&w, a, ring, place)
                         : produce_weights<Tile, false>(&w, a, ring, place);
  } else if (helper < Tile::kProducers) {
    if (hopper::elect_lane())
      a.cluster_columns > 1 ? produce_input<Tile, true>(&x, a, ring, place)
                            : produce_input<Tile, false>(&x, a, ring, place);
  } else if constexpr (NORMALISE) {
    take_moments<T, Tile>(a, ring, place, row_norms, helper - Tile::kProducers);
  }
  __syncwarp();
  // A block's shared memory must outlive its peers' copies and arrivals.
  if (cluster_size > 1) hopper::cluster_sync();
#endif
}

}  // namespace efft::cuda
