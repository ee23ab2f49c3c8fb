// How a product of eight-bit operands finishes a tile: scales, bias, activation and residual on the sums, then whole
// rows to memory. Warps work on their own.
#pragma once

#include "efft/cuda/linear/eight.cuh"
#include "efft/cuda/linear/many_epilogue.cuh"

namespace efft::cuda {

// A tile as ManyTile cuts it. Each warpgroup keeps its columns' scales and biases in shared memory, and each warp a
// piece of its rows, or, where a residual is added, two: while one is finished, the residual of the next arrives. What
// that leaves is for stages. SHIFTS: of the operand's rows.
template <int COLUMNS, Warpgroups WARPGROUPS, bool ADDS, bool SHIFTS>
struct EightBitTile : ManyTile<COLUMNS, WARPGROUPS> {
  using Base = ManyTile<COLUMNS, WARPGROUPS>;
  static constexpr bool kAdds = ADDS, kShifts = SHIFTS;
  static constexpr int kPieces = Base::kGroupHalves * ((COLUMNS + Base::kStagedColumns - 1) / Base::kStagedColumns);
  static constexpr int kBuffers = ADDS && kPieces > 1 ? 2 : 1;
  static constexpr int kWarpBytes = kBuffers * Base::kWarpBytes;
  static constexpr int kColumnBytes = (SHIFTS ? 12 : 8) * COLUMNS;  // of a warpgroup
  static constexpr int kOwnBytes = Base::kGroups * (4 * kWarpBytes + kColumnBytes);
  static constexpr int kStages = (Base::kBlockBytes - kOwnBytes) / (Base::kStageBytes + 16);
  static constexpr int kSharedBytes = kStages * (Base::kStageBytes + 16) + kOwnBytes;
};

#ifdef EFFT_HOPPER

// What a warpgroup's columns are multiplied by and what is added, in shared memory, by pairs of columns.
template <int COLUMNS, bool SHIFTS>
struct TileColumns {
  float4 factors[COLUMNS / 2];  // scale and bias of either
};
template <int COLUMNS>
struct TileColumns<COLUMNS, true> : TileColumns<COLUMNS, false> {
  float2 sums[COLUMNS / 2];  // of the weights, times the scale
};

// A warp's share of a tile: kGroupHalves times 16 rows, 64 rows apart. A lane has two rows of each, 8 apart, and of
// every eight columns two.
template <typename Types, typename Tile, Pointwise KIND>
class EightBitEpilogue {
 public:
  using Sum = typename EightBitWeight<typename Types::Operand>::sum;
  using Sums = Sum[Tile::kGroupHalves][Tile::kColumns / 2];
  using ColumnsOfTile = TileColumns<Tile::kColumns, Tile::kShifts>;
  static_assert(sizeof(ColumnsOfTile) == Tile::kColumnBytes);

  __device__ EightBitEpilogue(const EightBitArguments<Types>& a, char* staged, ColumnsOfTile& columns, int tokens,
                              int lane)
      : a_(a),
        staged_(staged),
        columns_(columns),
        tokens_(tokens),
        lane_(lane),
        inverse_(__float2half2_rn(kOperand ? a.scales.result.inverse() : 0.f)),
        zero_(__float2half2_rn(a.scales.result.zero)) {}

  // The warp's next tile, by its first row and output there; `thread` of its warpgroup. Reads parameters only.
  __device__ __forceinline__ void begin(Sums& sums, int row, int column, int thread) {
    row_ = row, column_ = column;
#pragma unroll
    for (auto& half : sums)
#pragma unroll
      for (Sum& sum : half) sum = 0;
    // One by one: vectors lie one behind the other, and any of odd length moves the rest.
    for (int i = thread; i < Tile::kColumns; i += 128) {
      const int at = column + i;
      if (at >= a_.n) break;
      float* const factors = reinterpret_cast<float*>(columns_.factors) + 2 * i;
      ptx::cp_async<4>(factors, a_.scales.columns + at, true);
      const float* const bias = a_.epilogue.bias;
      ptx::cp_async<4>(factors + 1, bias != nullptr ? bias + at : a_.scales.columns, bias != nullptr);
      if constexpr (kShifts) ptx::cp_async<4>(reinterpret_cast<float*>(columns_.sums) + i, a_.scales.sums + at, true);
    }
    ptx::cp_async_commit_group();
  }

  // What the predecessor has left of the rows: under way while the tile's products run.
  __device__ __forceinline__ void fetch() {
#pragma unroll
    for (int half = 0; half < Tile::kGroupHalves; ++half)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = row_ + half * 64 + r * 8 + lane_ / 4;
        RowNorm& scale = scales_[half][r];
        scale = a_.scales.all;
        ptx::load_if(scale.scale, scale.shift, a_.scales.rows + row, a_.scales.rows != nullptr && row < tokens_);
      }
    if constexpr (kAdds) {
#pragma unroll
      for (int piece = 0; piece < Tile::kBuffers; ++piece) fetch_residual(piece);
    }
  }

  // This thread's share of the columns has arrived.
  __device__ __forceinline__ void wait_columns() const { ptx::cp_async_wait_group<kAdds ? Tile::kBuffers : 0>(); }

  // Once all threads' have.
  __device__ __forceinline__ void finish(Sums& sums) {
    Made made;
    make_with(made, 0, 0);
#pragma unroll
    for (int piece = 0; piece < Tile::kPieces; ++piece) {
      if constexpr (kAdds) {
        if (piece + 1 < Tile::kPieces) {
          ptx::cp_async_wait_group<1>();
        } else {
          ptx::cp_async_wait_group<0>();
        }
        __syncwarp();
      }
      stage(sums[piece / kAlong], piece, made);
      __syncwarp();
      write(piece);
      __syncwarp();
      if (kAdds && piece + Tile::kBuffers < Tile::kPieces) fetch_residual(piece + Tile::kBuffers);
    }
  }

 private:
  using Result = typename Types::Result;
  using Rows = StagedRows<Tile::kStagedColumns>;
  static constexpr bool kAdds = Tile::kAdds;
  static constexpr bool kOperand = sizeof(Result) == 1;
  static constexpr bool kShifts = Tile::kShifts;
  static constexpr int kAlong = Tile::kPieces / Tile::kGroupHalves;  // pieces of a row
  static constexpr int kOperandPitch = Tile::kStagedColumns + 16;    // bytes: neither rows nor chunks of them conflict
  static_assert(!kOperand || 16 * kOperandPitch <= Tile::Base::kWarpBytes, "operands fit where results do");

  __device__ __forceinline__ char* buffer(int piece) const {
    return staged_ + piece % Tile::kBuffers * Tile::Base::kWarpBytes;
  }
  // First column of a piece within the tile, and the row of which it has 16.
  static __device__ __forceinline__ int first_of(int piece) { return piece % kAlong * Tile::kStagedColumns; }
  static __device__ __forceinline__ int rows_of(int piece) { return piece / kAlong * 64; }

  __device__ __forceinline__ float product(Sum sum, RowNorm row, float scale, float shift_sum, float bias) const {
    if constexpr (kShifts) bias = fmaf(row.shift, shift_sum, bias);
    return fmaf(static_cast<float>(sum), row.scale * scale, bias);
  }

  // Chunks of eight columns that are made at a time. An operand's are four, since a warp that finishes a tile has its
  // scheduler almost to itself, and each instruction of the activation waits for the one before.
  static constexpr int kAtOnce = kOperand ? 4 : 2;

  // What they are made with: the lane's two columns of each.
  struct Made {
    float4 factors[kAtOnce];
    float2 sums[kShifts ? kAtOnce : 1];
  };
  static __device__ __forceinline__ bool has(int piece, int chunk) {
    return chunk < Tile::kStagedColumns / 8 && first_of(piece) + chunk * 8 < Tile::kColumns;
  }
  __device__ __forceinline__ void make_with(Made& made, int piece, int chunk) const {
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (!has(piece, chunk + i)) break;
      const int pair = (first_of(piece) / 8 + chunk + i) * 4 + lane_ % 4;
      made.factors[i] = columns_.factors[pair];
      if constexpr (kShifts) made.sums[i] = columns_.sums[pair];
    }
  }
  // For what comes after: the same piece's next chunks, or the next piece's first.
  __device__ __forceinline__ void make_with_next(Made& made, int piece, int chunk) const {
    if (has(piece, chunk + kAtOnce)) {
      make_with(made, piece, chunk + kAtOnce);
    } else if (piece + 1 < Tile::kPieces) {
      make_with(made, piece + 1, 0);
    }
  }

  // Two chunks from `chunk` of a piece on, with what `made` has from `first` on: of each, two columns of the lane's
  // first row, then of its second.
  __device__ __forceinline__ void values_of(const Sum (&sums)[Tile::kColumns / 2], int piece, int chunk,
                                            const Made& made, int first, float (&values)[8]) const {
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = (first_of(piece) / 8 + chunk + i) * 4 + r * 2;
        const RowNorm row = scales_[piece / kAlong][r];
        const float4 factors = made.factors[first + i];
        float2 shifts{};
        if constexpr (kShifts) shifts = made.sums[first + i];
        values[i * 4 + r * 2] = product(sums[at], row, factors.x, shifts.x, factors.y);
        values[i * 4 + r * 2 + 1] = product(sums[at + 1], row, factors.z, shifts.y, factors.w);
      }
  }

  // `made` is read ahead of the stores, which the compiler keeps later loads of shared memory behind: where the matrix
  // unit works, a load takes its time.
  __device__ __forceinline__ void stage(const Sum (&sums)[Tile::kColumns / 2], int piece, Made& made) const {
#pragma unroll
    for (int chunk = 0; chunk < Tile::kStagedColumns / 8; chunk += kAtOnce) {
      if (!has(piece, chunk)) break;
      if constexpr (kOperand) {
        stage_operands(sums, piece, chunk, made);
      } else {
        float values[8];
        values_of(sums, piece, chunk, made, 0, values);
        make_with_next(made, piece, chunk);
        apply<KIND, Result>(values);
        stage_result(values, piece, chunk);
      }
    }
  }

  __device__ __forceinline__ void stage_result(float (&values)[8], int piece, int chunk) const {
    char* const fragment = Rows{buffer(piece)}.fragment(lane_, chunk);
    if constexpr (kAdds) {
      uint32_t residual[4];
      ptx::ldmatrix_x4(residual, fragment);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float2 pair = unpack_pair<typename Types::Residual>(residual[i]);
        values[2 * i] += pair.x, values[2 * i + 1] += pair.y;
      }
    }
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) pairs[i] = pack_pair<Result>(values[2 * i], values[2 * i + 1]);
    ptx::stmatrix_x4(fragment, pairs);
  }

  // With the activation, in pairs of fp16: half the instructions.
  __device__ __forceinline__ void stage_operands(const Sum (&sums)[Tile::kColumns / 2], int piece, int chunk,
                                                 Made& made) const {
    static_assert(!kOperand || KIND == Pointwise::gelu, "no other product's result is an operand");
    const bool both = has(piece, chunk + 2);
    __half2 pairs[8] = {};
#pragma unroll
    for (int two = 0; two < 2; ++two) {
      if (two > 0 && !both) break;
      float values[8];
      values_of(sums, piece, chunk + 2 * two, made, kAtOnce / 2 * two, values);
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[4 * two + i] = __floats2half2_rn(values[2 * i], values[2 * i + 1]);
    }
    make_with_next(made, piece, chunk);
    short_gelu(pairs);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (i >= 4 && !both) break;
      char* const to = buffer(piece) + (lane_ / 4 + i % 2 * 8) * kOperandPitch + (chunk + i / 2) * 8 + lane_ % 4 * 2;
      *reinterpret_cast<uint16_t*>(to) = pair_in_steps<Result>(pairs[i], inverse_, zero_);
    }
  }

  // Visits the lane's 16 bytes of a piece's rows: where they are, the offset of their first element in [tokens, n],
  // whether the matrix has it.
  template <typename Visit>
  __device__ __forceinline__ void each_chunk(int piece, Visit&& visit) const {
    constexpr int kElements = 16 / sizeof(Result), kOfRow = Tile::kStagedColumns / kElements;
    const auto one = [&](char* chunk, int r, int c) {
      const int row = row_ + rows_of(piece) + r, at = first_of(piece) + c * kElements, column = column_ + at;
      visit(chunk, int64_t{row} * a_.n + column, row < tokens_ && column < a_.n && at < Tile::kColumns);
    };
    if constexpr (kOperand) {
#pragma unroll
      for (int j = 0; j < kOfRow / 2; ++j) {
        const int i = lane_ + 32 * j;
        one(buffer(piece) + i / kOfRow * kOperandPitch + i % kOfRow * 16, i / kOfRow, i % kOfRow);
      }
    } else {
#pragma unroll
      for (int i = 0; i < Rows::kOfLane; ++i)
        one(Rows{buffer(piece)}.chunk(Rows::row(lane_, i), Rows::column(lane_, i)), Rows::row(lane_, i),
            Rows::column(lane_, i));
    }
  }

  __device__ __forceinline__ void fetch_residual(int piece) const {
    if constexpr (!kOperand) {
      each_chunk(piece, [&](char* chunk, int64_t offset, bool inside) {
        ptx::cp_async<16>(chunk, a_.epilogue.residual + (inside ? offset : 0), inside);
      });
      ptx::cp_async_commit_group();
    }
  }

  __device__ __forceinline__ void write(int piece) const {
    each_chunk(piece, [&](const char* chunk, int64_t offset, bool inside) {
      if (inside) *reinterpret_cast<uint4*>(a_.epilogue.out + offset) = *reinterpret_cast<const uint4*>(chunk);
    });
  }

  const EightBitArguments<Types>& a_;
  char* const staged_;
  ColumnsOfTile& columns_;
  const int tokens_, lane_;
  const __half2 inverse_, zero_;  // of the result's steps
  int row_, column_;
  RowNorm scales_[Tile::kGroupHalves][2];
};

#endif  // EFFT_HOPPER

}  // namespace efft::cuda
