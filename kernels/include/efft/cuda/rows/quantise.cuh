// Rows as operands of eight bits: activation(x + bias) as it stands, or LayerNorm(x + bias).
// Bound by memory: each row read once, and written once or, where 16 bits are wanted too, twice.
#pragma once

#include <algorithm>

#include "efft/cuda/operand.cuh"
#include "efft/cuda/rows/add_norm.cuh"
#include "efft/cuda/rows/pointwise.cuh"

namespace efft::cuda {

namespace detail {

constexpr int kSharedOfMultiprocessor = 227 * 1024;  // of sm_90
constexpr int kQuantiseWarps = 8;                    // of a block, unless a row takes more

// Of the block that a multiprocessor holds, where a warp has a whole row: as many as have registers for it.
template <int CHUNKS>
constexpr int kWholeRowWarps = CHUNKS > 3 ? 20 : 24;

// Of low <= 0 <= high. Floats that are not negative are in the order of their bits. e4m3 asks for magnitudes alone.
template <typename Operand>
__device__ __forceinline__ float2 warp_range(float low, float high) {
  const auto largest = [](float x) { return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(x))); };
  if constexpr (std::is_same_v<Operand, uint8_t>) {
    return make_float2(-largest(fabsf(low)), largest(fabsf(high)));
  } else {
    return make_float2(0.f, largest(fmaxf(fabsf(high), fabsf(low))));
  }
}

// Takes a value into a range as warp_range reads it.
template <typename Operand>
__device__ __forceinline__ void extend(float value, float& low, float& high) {
  if constexpr (std::is_same_v<Operand, uint8_t>) {
    low = fminf(low, value), high = fmaxf(high, value);
  } else {
    high = fmaxf(high, fabsf(value));
  }
}

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
  const auto scaled = [&](int c, float(&values)[kWidth]) {
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

// Vectors along the rows in shared memory, for warps that have whole rows: fours of each chunk in two halves, so that
// the lanes of a warp read neighbouring words.
template <int CHUNKS>
struct RowVector {
  float4 values[CHUNKS][2][kWarp];

  // By `threads` threads; zeros past the row's end, or without a vector.
  __device__ __forceinline__ void fill(const float* from, int width, int thread, int threads) {
    for (int i = thread; i < 2 * kWarp * CHUNKS; i += threads) {
      const bool inside = from != nullptr && 4 * i < width;
      values[i / (2 * kWarp)][i % 2][i / 2 % kWarp] =
          inside ? *reinterpret_cast<const float4*>(from + 4 * i) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }
  __device__ __forceinline__ void read(int chunk, float (&to)[8]) const {
    const float4 low = values[chunk][0][threadIdx.x], high = values[chunk][1][threadIdx.x];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
  }
};

// LayerNorm of rows of up to 1,024 elements, a warp each: it is bound by instructions, and what a row costs besides its
// elements (sums over lanes, barriers, merging parts) is paid once instead of by every 256 columns. FULL: a row fills
// its chunks.
template <typename T, typename Operand, int CHUNKS, bool FULL>
__global__ void __launch_bounds__(kWarp* kWholeRowWarps<CHUNKS>, 1)
    norm_whole_rows_kernel(AddNorm<T> a, OperandRows<Operand> to, const int* tokens, int capacity, int any_width) {
  constexpr int kWidth = kPackWidth<T>, kWarps = kWholeRowWarps<CHUNKS>;
  const int width = FULL ? CHUNKS * kWarp * kWidth : any_width;
  __shared__ RowVector<CHUNKS> bias, gamma, beta, factors;
  const int thread = threadIdx.y * kWarp + threadIdx.x;
  bias.fill(a.bias, width, thread, kWarps * kWarp);
  gamma.fill(a.gamma, width, thread, kWarps * kWarp);
  beta.fill(a.beta, width, thread, kWarps * kWarp);
  factors.fill(to.factors, width, thread, kWarps * kWarp);
  const int count = tokens == nullptr ? capacity : min(*tokens, capacity);
  const float share = 1.f / width;
  __syncthreads();
  wait_then_release();
  const auto column = [](int c) { return pack_column<kWidth>(c); };
  const auto inside = [&](int c) { return FULL || column(c) < width; };
  const int stride = gridDim.x * kWarps;
  RowPart<T, true> x[CHUNKS];
  const auto fetch = [&](int row) {
    const T* const start = a.x + int64_t{row} * width;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      if constexpr (!FULL) x[c].clear();
      if (row < count && inside(c)) x[c].words = *reinterpret_cast<const uint4*>(start + column(c));
    }
  };
  int row = blockIdx.x + threadIdx.y * gridDim.x;
  fetch(row);
  for (; row < count; row += stride) {
    const int64_t start = int64_t{row} * width;
    float values[CHUNKS][kWidth], vector[kWidth], mean = 0.f, squares = 0.f, low = 0.f, high = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      x[c].to_floats(values[c]);
      if (a.bias != nullptr) {
        bias.read(c, vector);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) values[c][i] += vector[i];
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) mean += values[c][i];
      if (a.sum != nullptr && inside(c)) store(a.sum + start + column(c), values[c]);
    }
    fetch(row + stride);
    mean = warp_sum(mean) * share;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      if (!inside(c)) continue;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[c][i] -= mean;
        squares += values[c][i] * values[c][i];
      }
    }
    const float scale = rsqrtf(warp_sum(squares) * share + a.epsilon);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      float shift[kWidth];
      gamma.read(c, vector);
      beta.read(c, shift);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[c][i] = values[c][i] * scale * vector[i] + shift[i];
      if (a.out != nullptr && inside(c)) store(a.out + start + column(c), values[c]);
      if (to.factors != nullptr) {
        factors.read(c, vector);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) values[c][i] *= vector[i];
      }
#pragma unroll
      for (int i = 0; i < kWidth; ++i) extend<Operand>(values[c][i], low, high);
    }
    const float2 range = warp_range<Operand>(low, high);
    const auto by = to.steps.given() ? rounding_in<Operand>(to.steps) : rounding_of<Operand>(range.x, range.y);
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c)
      if (inside(c)) store_operand(to.out + start + column(c), values[c], by);
    if (threadIdx.x == 0) to.scales[row] = by.scale;
  }
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
                  {dim3(blocks), dim3(kWarp, detail::kQuantiseWarps), 0, order, stream}, x, to, tokens, capacity, width);
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
  if (warps <= 1) return whole(std::integral_constant<int, 1>{});
  if (warps <= 2) return whole(std::integral_constant<int, 2>{});
  if (warps <= 3) return whole(std::integral_constant<int, 3>{});
  if (warps <= 4) return whole(std::integral_constant<int, 4>{});
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
