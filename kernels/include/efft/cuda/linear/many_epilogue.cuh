// How the kernel for many rows finishes a tile: bias, norms, activation and residual on the accumulators, then whole
// rows to memory. Warps work on their own: nothing here waits for another warp.
#pragma once

#include "efft/cuda/linear/epilogue.cuh"
#include "efft/cuda/linear/many_norm.cuh"
#include "efft/cuda/ptx/barrier.cuh"
#include "efft/cuda/ptx/copy.cuh"

namespace efft::cuda {

#ifdef EFFT_HOPPER

// 16 rows of COLUMNS two-byte elements in shared memory, in patches of 64 or 32 columns whose 16-byte chunks are
// swizzled: neither eight rows of one chunk nor the chunks of whole rows conflict.
template <int COLUMNS>
struct StagedRows {
  static constexpr int kPatch = COLUMNS % 64 == 0 ? 64 : 32;
  static constexpr int kChunks = kPatch / 8;             // of a patch's row
  static constexpr int kOfLane = 16 * COLUMNS / 8 / 32;  // chunks that a lane moves
  char* at;

  __device__ __forceinline__ char* chunk(int row, int chunk) const {
    const int turn = kChunks == 8 ? row : row / 2;
    return at + (chunk / kChunks * 16 + row) * (kPatch * 2) + ((chunk ^ turn) & (kChunks - 1)) * 16;
  }
  // The row that a lane names for the fragments of chunks `first` and `first + 1`, rows 0 to 7 and 8 to 15.
  __device__ __forceinline__ char* fragment(int lane, int first) const { return chunk(lane % 16, first + lane / 16); }
  // Row and chunk of the lane's i-th chunk where rows are moved whole.
  static __device__ __forceinline__ int row(int lane, int i) {
    constexpr int kAtOnce = 32 / kChunks;
    return lane / kChunks + i % (16 / kAtOnce) * kAtOnce;
  }
  static __device__ __forceinline__ int column(int lane, int i) { return lane % kChunks + i / (kChunks / 2) * kChunks; }
};

// A warp's share of a tile: kGroupHalves times 16 rows, 64 rows apart. A lane has two rows of each, 8 apart, and of
// every eight columns two. With NORMALISE the input is normalised on the fly (InputNorm); otherwise the residual may
// be, and the moments of the rows that are written may be asked for.
template <typename Types, typename Tile, Pointwise KIND, bool NORMALISE>
class ManyEpilogue {
 public:
  using Sums = float[Tile::kGroupHalves][Tile::kColumns / 2];

  __device__ ManyEpilogue(const LinearArguments<Types>& a, char* staged, int tokens, int lane)
      : a_(a), rows_{staged}, tokens_(tokens), lane_(lane), adds_(kCloses && a.epilogue.residual != nullptr) {}

  // The warp's next tile, by its first row and output there: the sums begin with the bias, which costs nothing then,
  // but with NORMALISE at zero. Reads parameters only, and float by float, since vectors of odd lengths lie between
  // them.
  __device__ __forceinline__ void begin(Sums& sums, int row, int column) {
    row_ = row, column_ = column;
    const Epilogue<Types>& e = a_.epilogue;
#pragma unroll
    for (int i = 0; i < Tile::kColumns / 8; ++i) {
      const int at = column + i * 8 + lane_ % 4 * 2;
      float2 first{};
      if constexpr (!NORMALISE) first = pair_at(e.bias, at);
      if constexpr (kNorms) {
        const bool normalised = e.residual_norm != nullptr;
        const float2 gamma = pair_at(normalised ? e.gamma : nullptr, at, 1.f);
        const float2 beta = pair_at(normalised ? e.beta : nullptr, at);
        gamma_[i * 2] = gamma.x, gamma_[i * 2 + 1] = gamma.y;
        first.x += beta.x, first.y += beta.y;
      }
#pragma unroll
      for (auto& half : sums) half[i * 4] = half[i * 4 + 2] = first.x, half[i * 4 + 1] = half[i * 4 + 3] = first.y;
    }
  }

  // What the predecessor has left of the rows. The residual is copied to shared memory while the tile's products run:
  // loads into registers, the compiler would move behind them.
  __device__ __forceinline__ void fetch() {
    if constexpr (kNorms) {
#pragma unroll
      for (int half = 0; half < Tile::kGroupHalves; ++half)
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          norms_[half][r] = {1.f, 0.f};
          if (a_.epilogue.residual_norm == nullptr || row(half, r) >= tokens_) continue;
          const float2 norm = __ldcg(reinterpret_cast<const float2*>(a_.epilogue.residual_norm) + row(half, r));
          norms_[half][r] = {norm.x, norm.y};
        }
    }
    if (adds_ && kWhole) fetch_residual(0, 0);
  }

  // norm: with NORMALISE; of the tile, in which the warp's first row is `first_row`.
  __device__ __forceinline__ void finish(Sums& sums, const TileNorm<Tile>& norm, int first_row) {
    columns_ = norm.columns + lane_ % 4 * 2;
#pragma unroll
    for (int half = 0; half < Tile::kGroupHalves; ++half) {
      if (row_ + half * 64 >= tokens_) return;
      if constexpr (NORMALISE) {
#pragma unroll
        for (int r = 0; r < 2; ++r) norms_[half][r] = norm.rows[first_row + half * 64 + r * 8 + lane_ / 4];
      }
#pragma unroll
      for (int first = 0; first < Tile::kColumns; first += Tile::kStagedColumns) {
        if (adds_) {
          if (!kWhole) fetch_residual(half, first);
          ptx::cp_async_wait_all();
          __syncwarp();
        }
        stage(sums[half], half, first);
        __syncwarp();
        write(half, first);
        __syncwarp();
      }
      if (kNorms && a_.epilogue.moments != nullptr) write_moments(sums[half], half);
    }
  }

 private:
  using Rows = StagedRows<Tile::kStagedColumns>;
  static constexpr bool kWhole = Tile::kStagedColumns == Tile::kColumns;
  static constexpr bool kCloses = KIND == Pointwise::none && !NORMALISE;  // may add a residual
  static constexpr bool kNorms = kCloses && kWhole;                       // and normalise it, and leave moments

  // The lane's r-th row.
  __device__ __forceinline__ int row(int half, int r) const { return row_ + half * 64 + r * 8 + lane_ / 4; }

  __device__ __forceinline__ float2 pair_at(const float* vector, int column, float absent = 0.f) const {
    if (vector == nullptr || column >= a_.n) return {absent, absent};
    return {__ldg(vector + column), __ldg(vector + column + 1)};
  }

  __device__ __forceinline__ void write_moments(const float (&values)[Tile::kColumns / 2], int half) const {
    Moments taken[2];
    take_moments<Tile::kColumns>(values, min(Tile::kColumns, a_.n - column_), lane_, taken);
    const int parts = (a_.n + Tile::kColumns - 1) / Tile::kColumns, r = lane_ % 4;  // lane r writes row r
    if (r < 2 && row(half, r) < tokens_)
      a_.epilogue.moments[int64_t{row(half, r)} * parts + column_ / Tile::kColumns] = r == 0 ? taken[0] : taken[1];
  }

  // Visits the lane's chunks of rows: the chunk in shared memory, its first element's offset in [tokens, n], whether
  // the matrix has it.
  template <typename Visit>
  __device__ __forceinline__ void each_chunk(int half, int first, Visit&& visit) const {
#pragma unroll
    for (int i = 0; i < Rows::kOfLane; ++i) {
      const int r = Rows::row(lane_, i), c = Rows::column(lane_, i);
      const int row = row_ + half * 64 + r, column = column_ + first + c * 8;
      const bool inside = row < tokens_ && column < a_.n && first + c * 8 < Tile::kColumns;
      visit(rows_.chunk(r, c), static_cast<int64_t>(row) * a_.n + column, inside);
    }
  }

  __device__ __forceinline__ void fetch_residual(int half, int first) const {
    each_chunk(half, first, [&](char* chunk, int64_t offset, bool inside) {
      ptx::cp_async<16>(chunk, a_.epilogue.residual + (inside ? offset : 0), inside);
    });
  }

  __device__ __forceinline__ void stage(float (&sums)[Tile::kColumns / 2], int half, int first) const {
#pragma unroll
    for (int chunk = 0; chunk < Tile::kStagedColumns / 8; chunk += 2) {
      if (first + chunk * 8 >= Tile::kColumns) break;
      char* const fragment = rows_.fragment(lane_, chunk);
      float values[8];  // pairs: chunk, the lane's rows one after the other; the next chunk
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = sums[first / 2 + chunk * 4 + i];
      finish_values(values, FragmentView{*this, half, first / 8 + chunk},
                    [&](float (&values)[8]) { add_residual(values, half, chunk, fragment); });
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = pack_pair<typename Types::Result>(values[2 * i], values[2 * i + 1]);
      ptx::stmatrix_x4(fragment, pairs);
      if constexpr (kNorms) {
#pragma unroll
        for (int i = 0; i < 8; ++i) sums[chunk * 4 + i] = values[i];
      }
    }
  }

  // A pair of chunks in the order of the matrix unit's sums, for finish_values: of each chunk, two neighbouring columns
  // of the lane's first row, then of its second.
  struct FragmentView {
    const ManyEpilogue& of;
    int half, chunk;  // which 64 rows, and the first chunk of the tile's

    // The bias is in the sums already, but where the input is normalised.
    __device__ __forceinline__ float product(float sum, int i) const {
      if constexpr (!NORMALISE) return sum;
      // bias and weight sum of two columns
      const float4 pair = *reinterpret_cast<const float4*>(of.columns_ + (chunk + i / 4) * 8);
      const RowNorm norm = of.norms_[half][i / 2 % 2];
      return i % 2 == 0 ? normalised_product(sum, norm, pair.y, pair.x) : normalised_product(sum, norm, pair.w, pair.z);
    }
    __device__ __forceinline__ void activate(float (&values)[8]) const { apply<KIND, typename Types::Result>(values); }
  };

  // The residual waits at `fragment`, in the place of the staged pair from `chunk` on.
  __device__ __forceinline__ void add_residual(float (&values)[8], int half, int chunk, const char* fragment) const {
    if (!adds_) return;
    uint32_t residual[4];
    ptx::ldmatrix_x4(residual, fragment);
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
      const float2 pair = unpack_pair<typename Types::Residual>(residual[i / 2]);
      values[i] += normalised(pair.x, half, chunk, i), values[i + 1] += normalised(pair.y, half, chunk, i + 1);
    }
  }

  // A residual element, the i-th of a pair of chunks, but for beta: that is in the sums.
  __device__ __forceinline__ float normalised(float residual, int half, int chunk, int i) const {
    if constexpr (!kNorms) return residual;
    return normalised_residual(residual, norms_[half][i / 2 % 2]) * gamma_[chunk * 2 + i / 4 * 2 + i % 2];
  }

  __device__ __forceinline__ void write(int half, int first) const {
    each_chunk(half, first, [&](const char* chunk, int64_t offset, bool inside) {
      if (inside) *reinterpret_cast<uint4*>(a_.epilogue.out + offset) = *reinterpret_cast<const uint4*>(chunk);
    });
  }

  const LinearArguments<Types>& a_;
  const Rows rows_;
  const int tokens_, lane_;
  const bool adds_;
  int row_, column_;
  const float2* columns_;                         // of the tile's norm, from the lane's first on
  RowNorm norms_[Tile::kGroupHalves][2];          // of the input or of the residual
  float gamma_[kNorms ? Tile::kColumns / 4 : 1];  // of the residual's norm
};

#endif  // EFFT_HOPPER

}  // namespace efft::cuda
