// How the wide linear kernel finishes a tile: bias, activation and residual on the accumulators, then whole rows to
// memory. Warps work on their own: nothing here waits for another warp.
#pragma once

#include "efft/cuda/hopper.cuh"
#include "efft/cuda/pointwise.cuh"
#include "efft/cuda/wide_arguments.cuh"

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

// A warp's share of a tile: kGroupHalves times 16 rows, 64 rows apart.
template <typename T, typename Tile, Pointwise KIND>
class WideEpilogue {
 public:
  using Sums = float[Tile::kGroupHalves][Tile::kColumns / 2];

  __device__ WideEpilogue(const WideArguments<T>& a, char* staged, int tokens, int lane)
      : a_(a), rows_{staged}, tokens_(tokens), lane_(lane), adds_(KIND == Pointwise::none && a.residual != nullptr) {}

  // The warp's next tile, by its first row and output there: the sums begin with the bias. Reads parameters only, and
  // float by float, since vectors of odd lengths lie between them.
  __device__ __forceinline__ void begin(Sums& sums, int row, int column) {
    row_ = row, column_ = column;
#pragma unroll
    for (int i = 0; i < Tile::kColumns / 8; ++i) {
      const int at = column + i * 8 + lane_ % 4 * 2;
      float2 bias{0.f, 0.f};
      if (a_.bias != nullptr && at < a_.n) bias = {__ldg(a_.bias + at), __ldg(a_.bias + at + 1)};
#pragma unroll
      for (auto& half : sums) half[i * 4] = half[i * 4 + 2] = bias.x, half[i * 4 + 1] = half[i * 4 + 3] = bias.y;
    }
  }

  // Copies the residual to shared memory while the tile's products run: loads into registers, the compiler would move
  // behind them.
  __device__ __forceinline__ void fetch() const {
    if (adds_ && kWhole) fetch_residual(0, 0);
  }

  __device__ __forceinline__ void finish(const Sums& sums) {
#pragma unroll
    for (int half = 0; half < Tile::kGroupHalves; ++half) {
      if (row_ + half * 64 >= tokens_) return;
#pragma unroll
      for (int first = 0; first < Tile::kColumns; first += Tile::kStagedColumns) {
        if (adds_) {
          if (!kWhole) fetch_residual(half, first);
          hopper::wait_for_copies();
          __syncwarp();
        }
        stage(sums[half], first);
        __syncwarp();
        write(half, first);
        __syncwarp();
      }
    }
  }

 private:
  using Rows = StagedRows<Tile::kStagedColumns>;
  static constexpr bool kWhole = Tile::kStagedColumns == Tile::kColumns;

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
      hopper::copy_chunk(chunk, a_.residual + (inside ? offset : 0), inside);
    });
  }

  __device__ __forceinline__ void stage(const float (&sums)[Tile::kColumns / 2], int first) const {
#pragma unroll
    for (int chunk = 0; chunk < Tile::kStagedColumns / 8; chunk += 2) {
      if (first + chunk * 8 >= Tile::kColumns) break;
      char* const fragment = rows_.fragment(lane_, chunk);
      float values[8];  // pairs: chunk, rows 0 to 7; rows 8 to 15; the next chunk
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = sums[first / 2 + chunk * 4 + i];
      apply<KIND, T>(values);
      if (adds_) {
        uint32_t residual[4];
        hopper::load_matrices(fragment, residual);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float2 pair = unpack_pair<T>(residual[i]);
          values[2 * i] += pair.x, values[2 * i + 1] += pair.y;
        }
      }
      uint32_t pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = pack_pair<T>(values[2 * i], values[2 * i + 1]);
      hopper::store_matrices(fragment, pairs);
    }
  }

  __device__ __forceinline__ void write(int half, int first) const {
    each_chunk(half, first, [&](const char* chunk, int64_t offset, bool inside) {
      if (inside) *reinterpret_cast<uint4*>(a_.out + offset) = *reinterpret_cast<const uint4*>(chunk);
    });
  }

  const WideArguments<T>& a_;
  const Rows rows_;
  const int tokens_, lane_;
  const bool adds_;
  int row_, column_;
};

#endif  // EFFT_HOPPER

}  // namespace efft::cuda
