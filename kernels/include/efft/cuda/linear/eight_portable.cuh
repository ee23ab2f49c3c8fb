// Products of eight-bit operands by the instructions of single warps, sm_80's for integers and sm_89's for e4m3: blocks
// of four warps make 64 tokens by 64 outputs, copying three stages ahead.
#pragma once

#include "efft/cuda/attention/load.cuh"
#include "efft/cuda/linear/eight.cuh"
#include "efft/cuda/linear/epilogue.cuh"

namespace efft::cuda {

struct PortableTile {
  static constexpr int kRows = 64, kColumns = 64, kDepth = 64;  // of a stage, in bytes along the depth
  static constexpr int kStages = 3, kThreads = 128;
  static constexpr int kOperandBytes = kRows * kDepth, kStageBytes = kOperandBytes + kColumns * kDepth;
  using Rows = SwizzledBlock<kDepth / 2>;
};

// Copies a stage's rows of one operand, [rows, k] from `first` on; zeros outside.
template <typename T>
__device__ __forceinline__ void copy_portable(uint32_t to, const T* matrix, int first, int rows, int at, int k) {
  constexpr int kChunks = PortableTile::kDepth / 16;
#pragma unroll
  for (int i = threadIdx.x; i < PortableTile::kRows * kChunks; i += PortableTile::kThreads) {
    const int row = i / kChunks, chunk = i % kChunks, column = at + chunk * 16;
    const bool valid = first + row < rows && column < k;
    const T* const from = valid ? matrix + int64_t{first + row} * k + column : matrix;
    ptx::cp_async<16>(to + PortableTile::Rows::offset(row, chunk), from, valid);
  }
}

// Two neighbouring outputs of a row, finished and stored.
template <typename Types, Pointwise KIND>
__device__ __forceinline__ void store_portable(const EightBitArguments<Types>& a, int row, int column, float2 sums) {
  using Result = typename Types::Result;
  const RowNorm scale = a.scales.rows == nullptr ? a.scales.all : a.scales.rows[row];
  float values[2] = {sums.x, sums.y};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float added = a.epilogue.bias == nullptr ? 0.f : a.epilogue.bias[column + i];
    if (a.scales.sums != nullptr) added = fmaf(scale.shift, a.scales.sums[column + i], added);
    values[i] = fmaf(values[i], scale.scale * a.scales.columns[column + i], added);
  }
  apply<KIND, __half>(values);
  const int64_t at = int64_t{row} * a.n + column;
  if constexpr (sizeof(Result) == 1) {
    const Rounding<Result> by = rounding_in<Result>(a.scales.result);
    *reinterpret_cast<uint16_t*>(a.epilogue.out + at) = by.pair(values[0], values[1]);
  } else {
    if (a.epilogue.residual != nullptr) {
      const float2 residual = unpack_pair<Result>(*reinterpret_cast<const uint32_t*>(a.epilogue.residual + at));
      values[0] += residual.x, values[1] += residual.y;
    }
    *reinterpret_cast<uint32_t*>(a.epilogue.out + at) = pack_pair<Result>(values[0], values[1]);
  }
}

template <typename Types, Pointwise KIND>
__global__ void __launch_bounds__(PortableTile::kThreads)
    eight_bit_portable_kernel(const typename Types::Operand* x, const typename Types::Weight* w,
                              EightBitArguments<Types> a) {
  using Tile = PortableTile;
  using Sum = typename EightBitWeight<typename Types::Operand>::sum;
  __shared__ __align__(128) char stages[Tile::kStages * Tile::kStageBytes];
  const int tokens = *a.tokens, first_row = blockIdx.y * Tile::kRows, first_column = blockIdx.x * Tile::kColumns;
  wait_then_release();
  if (first_row >= tokens) return;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, rows = warp / 2 * 32, columns = warp % 2 * 32;
  const uint32_t shared = ptx::shared_address(stages);
  const int steps = (a.k + Tile::kDepth - 1) / Tile::kDepth;
  const auto copy = [&](int step) {
    if (step < steps) {
      const uint32_t to = shared + step % Tile::kStages * Tile::kStageBytes;
      copy_portable(to, x, first_row, tokens, step * Tile::kDepth, a.k);
      copy_portable(to + Tile::kOperandBytes, w, first_column, a.n, step * Tile::kDepth, a.k);
    }
    ptx::cp_async_commit_group();
  };
  Sum sums[2][4][4] = {};
  for (int step = 0; step < Tile::kStages - 1; ++step) copy(step);
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait_group<Tile::kStages - 2>();
    __syncthreads();
    copy(step + Tile::kStages - 1);
    const uint32_t at = shared + step % Tile::kStages * Tile::kStageBytes;
#pragma unroll
    for (int chunk = 0; chunk < Tile::kDepth / 16; chunk += 2) {
      uint32_t operand[2][4], weights[2][4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        // Of 16 rows: the first eight and the others, 16 bytes each, then the next 16 bytes.
        ptx::ldmatrix_x4(operand[i], at + Tile::Rows::offset(rows + i * 16 + lane % 16, chunk + lane / 16));
        ptx::ldmatrix_x4(
            weights[i], at + Tile::kOperandBytes + Tile::Rows::offset(columns + i * 16 + lane % 16, chunk + lane / 16));
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
          ptx::mma_m16n8k32(sums[i][j], operand[i], weights[j / 2][j % 2], weights[j / 2][j % 2 + 2]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int row = first_row + rows + i * 16 + r * 8 + lane / 4;
        const int column = first_column + columns + j * 8 + lane % 4 * 2;
        if (row >= tokens || column >= a.n) continue;
        const float2 pair = {static_cast<float>(sums[i][j][2 * r]), static_cast<float>(sums[i][j][2 * r + 1])};
        store_portable<Types, KIND>(a, row, column, pair);
      }
}

// As eight_bit_rows (eight.cuh), on any device that has the products.
template <typename Types>
cudaError_t portable_eight_bits(const typename Types::Operand* x, const typename Types::Weight* w,
                                const EightBitArguments<Types>& a, int capacity, Order order, cudaStream_t stream) {
  using Tile = PortableTile;
  const auto with = [&](auto kind) {
    const dim3 grid((a.n + Tile::kColumns - 1) / Tile::kColumns, (capacity + Tile::kRows - 1) / Tile::kRows);
    return launch(eight_bit_portable_kernel<Types, kind.value>, {grid, dim3(Tile::kThreads), 0, order, stream}, x, w,
                  a);
  };
  const Pointwise kind = a.epilogue.pointwise;
  if (kind == Pointwise::gelu && a.epilogue.residual == nullptr)
    return with(std::integral_constant<Pointwise, Pointwise::gelu>{});
  if constexpr (sizeof(typename Types::Result) == 2) {
    if (kind == Pointwise::none) return with(std::integral_constant<Pointwise, Pointwise::none>{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace efft::cuda
