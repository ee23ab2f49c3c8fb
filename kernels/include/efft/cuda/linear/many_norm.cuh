// LayerNorm around the kernel for many rows: warps that have nothing else to do join the moments that the product
// before left; the four lanes that hold a row between them leave those of what they write.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear/many_tile.cuh"
#include "efft/cuda/linear/many_walk.cuh"
#include "efft/cuda/ptx/barrier.cuh"
#include "efft/cuda/ptx/copy.cuh"

namespace efft::cuda {

// What the epilogue of a tile needs of the input's norm, in shared memory.
template <typename Tile>
struct TileNorm {
  RowNorm rows[Tile::kRows];
  float2 columns[Tile::kColumns];  // bias, and the row sum of the folded weights
  uint64_t arrived;                // barrier: the moments
};

// Between the warps that fill the TileNorm and those that use it.
template <typename Tile>
struct TileNormBarriers {
  static constexpr int kFillers = 96;  // all of the copying warpgroup but the warp that copies
  static constexpr int kThreads = 128 * Tile::kGroups + kFillers;
  static constexpr int kFilled = 3, kUsed = 4;  // names; the turns have 1 and 2
};

#ifdef EFFT_HOPPER

// By kFillers threads, while the others copy and multiply: the products, some 5,000 cycles, hide it. Moments come to
// `staged`, where nothing is staged before the tile's products are done.
template <typename Tile, typename Types>
__device__ void fill_norms(const LinearArguments<Types>& a, const ManyWalk<Tile>& walk, TileNorm<Tile>& norm,
                           char* staged, int tokens, int thread) {
  using Barriers = TileNormBarriers<Tile>;
  static_assert(kMostMoments * 8 * Tile::kRows <= 4 * Tile::kGroups * Tile::kWarpBytes, "moments fit");
  const int width = a.norm.part_width, parts = a.norm.parts(a.k), last = a.k - (parts - 1) * width;
  const float share = 1.f / static_cast<float>(a.k);
#pragma unroll 1
  for (int i = 0; walk.has(i); ++i) {
    if (i > 0) ptx::barrier_sync(Barriers::kUsed, Barriers::kThreads);
    const int first = walk.row(i), column = walk.column(i), rows = min(Tile::kRows, tokens - first);
    for (int c = thread; c < min(Tile::kColumns, a.n - column); c += Barriers::kFillers)
      norm.columns[c] = {__ldg(a.epilogue.bias + column + c), __ldg(a.norm.weight_sums + column + c)};
    wait_for_predecessor();
    if (thread == 0) {
      const int bytes = (rows * parts + 1) / 2 * 16;  // copies are of 16 bytes
      ptx::fence_proxy_async();
      ptx::mbarrier_arrive_expect_tx(&norm.arrived, bytes);
      ptx::cp_async_bulk(staged, a.norm.moments + int64_t{first} * parts, bytes, &norm.arrived);
    }
    ptx::mbarrier_wait(&norm.arrived, i & 1);
    for (int row = thread; row < rows; row += Barriers::kFillers) {
      const float2* const moments = reinterpret_cast<const float2*>(staged) + row * parts;
      const auto elements = [&](int part) { return static_cast<float>(part + 1 < parts ? width : last); };
      // Each row from another part on, since the banks of its neighbours' parts are the same.
      const auto each_part = [&](auto&& visit) {
        int part = row % parts;
#pragma unroll 4
        for (int i = 0; i < parts; ++i, part = part + 1 < parts ? part + 1 : 0) visit(moments[part], elements(part));
      };
      float mean = 0.f, squares = 0.f;
      each_part([&](float2 own, float count) { mean = fmaf(count, own.x, mean); });
      mean *= share;
      // Differences of means, not squares of them: nothing cancels in rows far from zero.
      each_part([&](float2 own, float count) { squares += fmaf(count * (own.x - mean), own.x - mean, own.y); });
      const float scale = rsqrtf(fmaf(squares, share, a.norm.epsilon));
      norm.rows[row] = {scale, -mean * scale};
      if (column == 0) a.norm.rows[first + row] = norm.rows[row];
    }
    ptx::barrier_arrive(Barriers::kFilled, Barriers::kThreads);
  }
}

#endif  // EFFT_HOPPER

__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(0xffffffff, x, 1);
  return x + __shfl_xor_sync(0xffffffff, x, 2);
}

// Of a tile's finished outputs in the order of the matrix unit's sums, `width` of whose columns the matrix has: the
// moments of a lane's two rows, to all four lanes.
template <int COLUMNS>
__device__ __forceinline__ void take_moments(const float (&values)[COLUMNS / 2], int width, int lane,
                                             Moments (&taken)[2]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const auto inside = [&](int i) { return i * 8 + lane % 4 * 2 < width; };
    float mean = 0.f, squares = 0.f;
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; ++i)
      if (inside(i)) mean += values[i * 4 + r * 2] + values[i * 4 + r * 2 + 1];
    mean = quad_sum(mean) / static_cast<float>(width);
#pragma unroll
    for (int i = 0; i < COLUMNS / 8; ++i)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const float away = values[i * 4 + r * 2 + j] - mean;
        if (inside(i)) squares = fmaf(away, away, squares);
      }
    taken[r] = {mean, quad_sum(squares)};
  }
}

}  // namespace efft::cuda
