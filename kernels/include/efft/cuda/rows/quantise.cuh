// Rows as operands of eight bits: activation(x + bias) as it stands, or LayerNorm(x + bias).
// Bound by memory: each row read once, and written once or, where 16 bits are wanted too, twice.
#pragma once

#include <algorithm>

#include "efft/cuda/operand.cuh"
#include "efft/cuda/rows/add_norm.cuh"
#include "efft/cuda/rows/norm_whole_rows.cuh"
#include "efft/cuda/rows/pointwise.cuh"

namespace efft::cuda {

namespace detail {

constexpr int kSharedOfMultiprocessor = 227 * 1024;  // of sm_90
constexpr int kQuantiseWarps = 8;                    // of a block, unless a row takes more

// Of a row that `warps` warps hold, this one of them by number, past its end zeros. ranges: [warps], shared. By all
// threads of the block: there may be a barrier.
template <typename Operand, int WIDTH>
__device__ __forceinline__ Rounding<Operand> rounding_of_row(const OperandRows<Operand>& to,
                                                             const float (&values)[WIDTH], float2* ranges, int warps,
                                                             int warp) {
  if (to.steps.given()) return rounding_in<Operand>(to.steps);
  float low = 0.f, high = 0.f;
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) extend<Operand>(values[i], low, high);
  float2 range = warp_range<Operand>(low, high);
  if (warps > 1) {
    if (threadIdx.x == 0) ranges[warp] = range;
    __syncthreads();
#pragma unroll 4
    for (int w = 0; w < warps; ++w) range = make_float2(fminf(range.x, ranges[w].x), fmaxf(range.y, ranges[w].y));
  }
  return rounding_of<Operand>(range.x, range.y);
}

// A thread takes one pack of a row, a row `warps` warps; blocks are (32, warps, rows).
template <typename T, typename Operand>
__global__ void quantise_rows_kernel(const T* x, OperandRows<Operand> to, const int* tokens, int capacity, int width) {
  constexpr int kWidth = kPackWidth<T>;
  __shared__ float2 ranges[kWarp];
  wait_for_predecessor();
  release_successor();
  const int count = tokens == nullptr ? capacity : min(*tokens, capacity);
  const int warps = blockDim.y, row = blockIdx.x * blockDim.z + threadIdx.z;
  const int column = (threadIdx.y * kWarp + threadIdx.x) * kWidth;
  const bool inside = row < count && column < width;
  float values[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) values[i] = 0.f;
  const int64_t at = int64_t{row} * width + column;
  if (inside) {
    load(x + at, values);
    if (to.factors != nullptr) {
      float factors[kWidth];
      load_parameters(to.factors + column, factors);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] *= factors[i];
    }
  }
  const Rounding<Operand> by = rounding_of_row(to, values, ranges + threadIdx.z * warps, warps, threadIdx.y);
  if (!inside) return;
  store_operand(to.out + at, values, by);
  if (column == 0) to.scales[row] = by.scale;
}

// As above with a warp for each row, which so needs no barrier. The row stays in whole words between the two passes.
template <typename T, typename Operand, int CHUNKS>
__global__ void __launch_bounds__(kWarp* kQuantiseWarps)
    quantise_whole_rows_kernel(const T* x, OperandRows<Operand> to, const int* tokens, int capacity, int width) {
  constexpr int kWidth = kPackWidth<T>;
  wait_for_predecessor();
  release_successor();
  const int row = blockIdx.x * kQuantiseWarps + threadIdx.y;
  if (row >= (tokens == nullptr ? capacity : min(*tokens, capacity))) return;
  const int64_t start = int64_t{row} * width;
  RowPart<T, true> parts[CHUNKS];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    parts[c].clear();
    parts[c].load(x + start, pack_column<kWidth>(c), width);
  }
  const auto scaled = [&](int c, float (&values)[kWidth]) {
    parts[c].to_floats(values);
    if (to.factors == nullptr) return;
    float factors[kWidth];
    load_parameters_part<true>(to.factors, pack_column<kWidth>(c), width, factors);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] *= factors[i];
  };
  Rounding<Operand> by;
  if (to.steps.given()) {
    by = rounding_in<Operand>(to.steps);
  } else {
    float low = 0.f, high = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      float values[kWidth];
      scaled(c, values);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) extend<Operand>(values[i], low, high);
    }
    const float2 range = warp_range<Operand>(low, high);
    by = rounding_of<Operand>(range.x, range.y);
  }
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int column = pack_column<kWidth>(c);
    if (column >= width) break;
    float values[kWidth];
    scaled(c, values);
    store_operand(to.out + start + column, values, by);
  }
  if (threadIdx.x == 0) to.scales[row] = by.scale;
}

// As add_norm_kernel, a row at a time: a thread keeps its columns, blocks stay, the next row is on its way.
template <typename T, typename Operand, int WARPS>
__global__ void __launch_bounds__(kWarp* WARPS, kNormBlocks<WARPS, 1>)
    norm_operand_kernel(AddNorm<T> a, OperandRows<Operand> to, const int* tokens, int capacity, int width) {
  constexpr int kWidth = kPackWidth<T>;
  __shared__ float2 moments[2][WARPS], ranges[2][WARPS];  // two copies each, so that one barrier each is enough
  const int warp = threadIdx.y;
  const int column = (warp * kWarp + static_cast<int>(threadIdx.x)) * kWidth;
  float bias[kWidth], gamma[kWidth], beta[kWidth];
  load_parameters_part<true>(a.bias, column, width, bias);
  load_parameters_part<true>(a.gamma, column, width, gamma);
  load_parameters_part<true>(a.beta, column, width, beta);
  const int count = tokens == nullptr ? capacity : min(*tokens, capacity);
  wait_then_release();
  const float share = 1.f / width, warp_share = 1.f / min(max(width - warp * kWarp * kWidth, 1), kWarp * kWidth);
  const int stride = gridDim.x;
  RowPart<T, true> x;
  const auto fetch = [&](int row) {
    x.clear();
    if (row < count) x.load(a.x + int64_t{row} * width, column, width);
  };
  int row = blockIdx.x;
  fetch(row);
  for (int step = 0; row < count; row += stride, step ^= 1) {
    float values[kWidth], mean[1] = {}, squares[1] = {};
    x.to_floats(values);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] += bias[i], mean[0] += values[i];
    const int64_t start = int64_t{row} * width;
    if (a.sum != nullptr) store_part<true>(a.sum + start, column, width, values);
    fetch(row + stride);
    warp_sums(mean);
    mean[0] *= warp_share;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) {
      values[i] -= mean[0];
      if (column < width) squares[0] += values[i] * values[i];
    }
    warp_sums(squares);
    if (threadIdx.x == 0) moments[step][warp] = make_float2(mean[0], squares[0]);
    __syncthreads();
    const float2 whole = merge<WARPS, kWarp * kWidth>(moments[step], width, share);
    const float scale = rsqrtf(whole.y * share + a.epsilon), shift = (mean[0] - whole.x) * scale;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) values[i] = (values[i] * scale + shift) * gamma[i] + beta[i];
    if (a.out != nullptr) store_part<true>(a.out + start, column, width, values);
    if (to.factors != nullptr) {
      float factors[kWidth];
      load_parameters_part<true>(to.factors, column, width, factors);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[i] *= factors[i];
    }
    const Rounding<Operand> by = rounding_of_row(to, values, ranges[step], WARPS, warp);
    if (column < width) store_operand(to.out + start + column, values, by);
    if (column == 0) to.scales[row] = by.scale;
  }
}

}  // namespace detail

// x [rows, width] as operands; the first *tokens rows (device memory; nullptr: all `capacity` of them). width: a
// multiple of 8 up to 8,192, arrays aligned to 16 bytes (cudaErrorInvalidValue otherwise). T: two bytes.
template <typename T, typename Operand>
cudaError_t quantise_rows(const T* x, const OperandRows<Operand>& to, const int* tokens, int capacity, int width,
                          cudaStream_t stream, Order order = Order::kOverlap) {
  constexpr int kWarpColumns = kWarp * kPackWidth<T>;
  const int warps = (width + kWarpColumns - 1) / kWarpColumns;
  if (width % kPackWidth<T> != 0 || warps > kWarp || !aligned(x) || !aligned(to.out) || !aligned(to.factors))
    return cudaErrorInvalidValue;
  const auto start = [&](auto chunks) {
    constexpr int kChunks = decltype(chunks)::value;
    const int blocks = (capacity + detail::kQuantiseWarps - 1) / detail::kQuantiseWarps;
    return launch(detail::quantise_whole_rows_kernel<T, Operand, kChunks>,
                  {dim3(blocks), dim3(kWarp, detail::kQuantiseWarps), 0, order, stream}, x, to, tokens, capacity,
                  width);
  };
  if (warps <= 2) return start(std::integral_constant<int, 2>{});
  if (warps <= 3) return start(std::integral_constant<int, 3>{});
  if (warps <= 4) return start(std::integral_constant<int, 4>{});
  if (warps <= 6) return start(std::integral_constant<int, 6>{});
  if (warps <= 8) return start(std::integral_constant<int, 8>{});
  if (warps <= 12) return start(std::integral_constant<int, 12>{});
  if (warps <= 16) return start(std::integral_constant<int, 16>{});
  const int rows = std::max(1, detail::kQuantiseWarps / warps);
  const dim3 grid((capacity + rows - 1) / rows), block(kWarp, warps, rows);
  return launch(detail::quantise_rows_kernel<T, Operand>, {grid, block, 0, order, stream}, x, to, tokens, capacity,
                width);
}

// LayerNorm(x + bias) as operands, and as it is to a.out unless that is nullptr; x + bias to a.sum, where there is a
// bias. a.residual is not read. Rows as for quantise_rows, up to 8,192 wide.
template <typename T, typename Operand>
cudaError_t norm_operands(const AddNorm<T>& a, const OperandRows<Operand>& to, const int* tokens, int capacity,
                          int width, cudaStream_t stream, Order order = Order::kOverlap) {
  if (width % kPackWidth<T> != 0 || !aligned(to.out) || !aligned(to.factors) || !detail::add_norm_aligned(a))
    return cudaErrorInvalidValue;
  const auto whole = [&](auto chunks) {
    constexpr int kChunks = decltype(chunks)::value;
    const bool full = width == kChunks * kWarp * kPackWidth<T>;
    const int blocks = std::min(capacity, DeviceInfo::current().multiprocessors);
    return launch(full ? detail::norm_whole_rows_kernel<T, Operand, kChunks, true>
                       : detail::norm_whole_rows_kernel<T, Operand, kChunks, false>,
                  {dim3(blocks), dim3(kWarp, detail::kWholeRowWarps<kChunks>), 0, order, stream}, a, to, tokens,
                  capacity, width);
  };
  const auto start = [&](auto warps) {
    constexpr int kWarps = decltype(warps)::value;
    constexpr int kBlocks = detail::kNormBlocks<kWarps, 1>;
    const int blocks = std::min(capacity, DeviceInfo::current().multiprocessors * kBlocks);
    // Shared memory that nobody uses: else those multiprocessors that the kernel in front leaves first take more blocks
    // than the others, and the product behind waits for them.
    const DeviceInfo& device = DeviceInfo::current();
    const size_t unused = device.hopper ? detail::kSharedOfMultiprocessor / kBlocks - 2048 : 0;
    return launch(detail::norm_operand_kernel<T, Operand, kWarps>,
                  {dim3(blocks), dim3(kWarp, kWarps), unused, order, stream}, a, to, tokens, capacity, width);
  };
  const int warps = (width + kWarp * kPackWidth<T> - 1) / (kWarp * kPackWidth<T>);
  // With fewer rows than that a warp has but one, and the way from its loads to its stores is shorter by several warps.
  if (warps <= 4 && capacity > 16 * DeviceInfo::current().multiprocessors) {
    if (warps <= 1) return whole(std::integral_constant<int, 1>{});
    if (warps <= 2) return whole(std::integral_constant<int, 2>{});
    if (warps <= 3) return whole(std::integral_constant<int, 3>{});
    return whole(std::integral_constant<int, 4>{});
  }
  if (warps <= 1) return start(std::integral_constant<int, 1>{});
  if (warps <= 2) return start(std::integral_constant<int, 2>{});
  if (warps <= 3) return start(std::integral_constant<int, 3>{});
  if (warps <= 4) return start(std::integral_constant<int, 4>{});
  if (warps <= 8) return start(std::integral_constant<int, 8>{});
  return warps <= 32 ? start(std::integral_constant<int, 32>{}) : cudaErrorInvalidValue;
}

#define EFFT_QUANTISE(T, OPERAND)                                                                               \
  template cudaError_t quantise_rows(const T*, const OperandRows<OPERAND>&, const int*, int, int, cudaStream_t, \
                                     Order);                                                                    \
  template cudaError_t norm_operands(const AddNorm<T>&, const OperandRows<OPERAND>&, const int*, int, int,      \
                                     cudaStream_t, Order);
#define EFFT_QUANTISE_EXTERN(T, OPERAND)                                                                               \
  extern template cudaError_t quantise_rows(const T*, const OperandRows<OPERAND>&, const int*, int, int, cudaStream_t, \
                                            Order);                                                                    \
  extern template cudaError_t norm_operands(const AddNorm<T>&, const OperandRows<OPERAND>&, const int*, int, int,      \
                                            cudaStream_t, Order);
#define EFFT_EACH_OPERAND(X) \
  X(__half, uint8_t) X(__half, __nv_fp8_e4m3) X(__nv_bfloat16, uint8_t) X(__nv_bfloat16, __nv_fp8_e4m3)
EFFT_EACH_OPERAND(EFFT_QUANTISE_EXTERN)
#undef EFFT_QUANTISE_EXTERN

}  // namespace efft::cuda
