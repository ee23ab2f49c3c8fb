// LayerNorm around the kernel for few rows: moments of the rows that one product writes, joined into the scale and
// shift that the next one needs.
#pragma once

#include "efft/cuda/linear/arguments.cuh"
#include "efft/cuda/linear/few_exchange.cuh"
#include "efft/cuda/linear/few_tile.cuh"
#include "efft/cuda/linear/ring.cuh"

namespace efft::cuda {

constexpr int kNormThreads = 128;

// Moments of `width` elements.
struct Part {
  float width, mean, squares;
};

// Those of two parts together. Differences of means, not squares of them, are taken: nothing cancels in rows far from
// zero.
__device__ __forceinline__ Part join(Part a, Part b) {
  const float width = a.width + b.width, share = width > 0.f ? __fdividef(b.width, width) : 0.f;
  const float away = b.mean - a.mean;
  return {width, fmaf(away, share, a.mean), fmaf(away * away, a.width * share, a.squares + b.squares)};
}

// Scale and shift of the rows that this block finishes, to shared memory. By kNormThreads threads, some neighbouring
// lanes a row, while the others multiply.
template <typename Tile, typename Types>
__device__ void join_rows(const LinearArguments<Types>& a, const FewPlace<Tile>& place, RowNorm* row_norms,
                          int thread) {
  constexpr int kLanes = kNormThreads / Tile::kShareRows;
  static_assert(kLanes > 0 && kLanes <= 32);
  const int lane = thread % kLanes, row = thread / kLanes;
  const int width = a.norm.part_width, parts = a.norm.parts(a.k);
  const int64_t token = place.row + place.split * Tile::kShareRows + row;
  wait_for_predecessor();
  Part joined{};
  if (token < place.tokens) {
    const float2* const of_row = reinterpret_cast<const float2*>(a.norm.moments) + token * parts;
#pragma unroll 8
    for (int i = lane; i < parts; i += kLanes) {
      const float2 part = __ldcg(of_row + i);
      joined = join(joined, {static_cast<float>(min(width, a.k - i * width)), part.x, part.y});
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2)
    joined =
        join(joined, {__shfl_xor_sync(0xffffffff, joined.width, step), __shfl_xor_sync(0xffffffff, joined.mean, step),
                      __shfl_xor_sync(0xffffffff, joined.squares, step)});
  if (lane == 0 && token < place.tokens) {
    const float scale = rsqrtf(joined.squares / static_cast<float>(a.k) + a.norm.epsilon);
    const RowNorm norm{scale, -joined.mean * scale};
    row_norms[row] = norm;
    if (place.column == 0) a.norm.rows[token] = norm;
  }
  ptx::barrier_arrive(kStagesBarrier, Tile::kConsumers + kNormThreads);
}

// An item's moments, to where its sums were: nobody needs those any more.
__device__ __forceinline__ void leave_moments(const float (&values)[8], float* item) {
  float mean = 0.f, squares = 0.f;
#pragma unroll
  for (const float v : values) mean = fmaf(v, 0.125f, mean);
#pragma unroll
  for (const float v : values) squares = fmaf(v - mean, v - mean, squares);
  *reinterpret_cast<float2*>(item) = make_float2(mean, squares);
}

// The moments of the finished share's rows from those of their items, a row a thread.
template <typename Tile, typename Types>
__device__ void write_moments(const LinearArguments<Types>& a, const float* sums, int row, int column, int tokens,
                              int thread) {
  if (thread >= Tile::kShareRows || row + thread >= tokens) return;
  const float* const items = sums + thread * Tile::kSumsPitch;
  Part joined{8.f, items[0], items[1]};
#pragma unroll
  for (int i = 8; i < Tile::kColumns; i += 8) joined = join(joined, {8.f, items[i], items[i + 1]});
  a.epilogue.moments[static_cast<int64_t>(row + thread) * (a.n / Tile::kColumns) + column / Tile::kColumns] = {
      joined.mean, joined.squares};
}

}  // namespace efft::cuda
