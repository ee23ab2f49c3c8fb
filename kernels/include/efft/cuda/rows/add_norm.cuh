// norm(x + bias + residual), the end of an attention or feed-forward block: LayerNorm or RMSNorm.
// Bound by memory: one or two rows read and one written a token (two where the sum is wanted too).
#pragma once

#include <algorithm>

#include "efft/cuda/call.cuh"
#include "efft/cuda/device.h"
#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {

template <typename T>
struct AddNorm {
  const T* x;          // [rows, width]
  const float* bias;   // [width] or nullptr
  const T* residual;   // [rows, width] or nullptr
  const float* gamma;  // [width]
  const float* beta;   // [width]
  float epsilon;
  T* out;  // [rows, width], may be x or residual
  T* sum;  // [rows, width] or nullptr: x + bias + residual, what a pre-norm block carries on
  NormKind kind = NormKind::layer;
};

namespace detail {

// Blocks a multiprocessor holds: as many as leave each thread the registers it needs. A few spilled ones would double
// the traffic, since a thread has no more than 16 bytes of a row.
template <int WARPS, int ROWS>
constexpr int kNormBlocks = ROWS > 1      ? 20 / WARPS
                            : WARPS >= 16 ? 1
                            : WARPS >= 8  ? 3
                                          : 30 / WARPS;

// From here on rows are taken two at a time.
constexpr int kManyNormRows = 1024;

// Which row of x each row of the result comes from, and how many there are.
template <typename T>
struct PackedRows {
  const int* tokens;
  int capacity;
  static constexpr bool kHasPads = false;

  __device__ int count() const { return tokens == nullptr ? capacity : min(*tokens, capacity); }
  __device__ int source(int row) const { return row; }
  __device__ T* target(const AddNorm<T>& a) const { return a.out; }
};

template <typename T>
struct PaddedRows {
  const int* slots;
  const Call* call;
  static constexpr bool kHasPads = true;  // rows without a source, which are zero

  __device__ int count() const { return call->places(); }
  __device__ int source(int row) const { return slots[row]; }
  __device__ T* target(const AddNorm<T>&) const { return static_cast<T*>(call->out); }
};

// What a thread holds of a row, as it lies in memory: kept in whole words, since elements of two bytes in registers of
// their own would first have to be cut out of them. Zeros past the row's end.
template <typename T, bool VECTORS>
struct RowPart {
  uint4 words;

  __device__ __forceinline__ void clear() { words = make_uint4(0, 0, 0, 0); }
  __device__ __forceinline__ void load(const T* row, int column, int width) {
    if (column < width) words = *reinterpret_cast<const uint4*>(row + column);
  }
  __device__ __forceinline__ void to_floats(float (&to)[kPackWidth<T>]) const {
    const uint32_t all[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, float>) {
        to[i] = __uint_as_float(all[i]);
      } else if constexpr (std::is_same_v<T, __half>) {
        const float2 pair = __half22float2(reinterpret_cast<const __half2&>(all[i]));
        to[2 * i] = pair.x, to[2 * i + 1] = pair.y;
      } else {  // the upper half of an fp32
        to[2 * i] = __uint_as_float(all[i] << 16), to[2 * i + 1] = __uint_as_float(all[i] & 0xffff0000u);
      }
    }
  }
};

// Rows of any width and alignment.
template <typename T>
struct RowPart<T, false> {
  float values[kPackWidth<T>];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < kPackWidth<T>; ++i) values[i] = 0.f;
  }
  __device__ __forceinline__ void load(const T* row, int column, int width) {
#pragma unroll
    for (int i = 0; i < kPackWidth<T>; ++i)
      if (column + i < width) values[i] = to_float(row[column + i]);
  }
  __device__ __forceinline__ void to_floats(float (&to)[kPackWidth<T>]) const {
#pragma unroll
    for (int i = 0; i < kPackWidth<T>; ++i) to[i] = values[i];
  }
};

template <bool VECTORS, int WIDTH>
__device__ __forceinline__ void load_parameters_part(const float* from, int column, int width, float (&to)[WIDTH]) {
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) to[i] = 0.f;
  if (from == nullptr) return;
  if constexpr (VECTORS) {
    if (column < width) load_parameters(from + column, to);
  } else {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (column + i < width) to[i] = from[column + i];
  }
}

template <bool VECTORS, typename T, int WIDTH>
__device__ __forceinline__ void store_part(T* row, int column, int width, const float (&values)[WIDTH]) {
  if constexpr (VECTORS) {
    if (column < width) store(row + column, values);
  } else {
#pragma unroll
    for (int i = 0; i < WIDTH; ++i)
      if (column + i < width) row[column + i] = from_float<T>(values[i]);
  }
}

// The sums over the warp of several values at once, so that none waits for another's shuffles.
template <int COUNT>
__device__ __forceinline__ void warp_sums(float (&x)[COUNT]) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2)
#pragma unroll
    for (float& value : x) value += __shfl_xor_sync(0xffffffffu, value, offset);
}

// Mean and squares around it of a row of `width` elements from those of its parts of COLUMNS elements each. share: 1 /
// width.
template <int WARPS, int COLUMNS>
__device__ __forceinline__ float2 merge(const float2 (&parts)[WARPS], int width, float share) {
  constexpr int kUnroll = WARPS <= 4 ? WARPS : 1;  // more would need more registers than the rows themselves
  float mean = 0.f, squares = 0.f;
  const auto columns = [&](int w) -> float { return min(max(width - w * COLUMNS, 0), COLUMNS); };
#pragma unroll kUnroll
  for (int w = 0; w < WARPS; ++w) mean += columns(w) * parts[w].x;
  mean *= share;
#pragma unroll kUnroll
  for (int w = 0; w < WARPS; ++w) {
    const float distance = parts[w].x - mean;
    squares += parts[w].y + columns(w) * distance * distance;
  }
  return make_float2(mean, squares);
}

// A thread keeps its columns for all rows, and with them bias, gamma and beta in registers: read once a row from the L1
// cache they are more bytes than the row. They do not depend on the predecessor, and the next rows are on their way
// while these are worked on.
//
// Each warp takes the mean and the squares around it of its own columns; the block merges them, which is as exact as
// taking the squares around the row's mean and needs one barrier.
//
// ROWS: taken at a time. The chain from a row's loads to its store is long, and two rows share its barrier and the
// waits between its shuffles; but they leave room for fewer warps, which is a loss where there is less to load (H200,
// fp16, 6,035 rows of 768, us: two operands from memory 7.9 with one row, 7.6 with two; one operand in L2 5.3 and 6.1).
// Rejected: more rows under way in registers (8.0 and more) or by cp.async (9 and more); loads and stores that L1 or L2
// give up first (no faster from memory, a third slower from L2).
template <typename T, int WARPS, int ROWS, bool VECTORS, bool RESIDUAL, typename Rows>
__global__ void __launch_bounds__(kWarp* WARPS, kNormBlocks<WARPS, ROWS>)
    add_norm_kernel(AddNorm<T> a, Rows rows, int width) {
  constexpr int kWidth = kPackWidth<T>;
  __shared__ float2 parts[2][ROWS][WARPS];  // two copies, so that one barrier is enough
  const int warp = threadIdx.y;
  const int column = (warp * kWarp + static_cast<int>(threadIdx.x)) * kWidth;
  float bias[kWidth], gamma[kWidth], beta[kWidth];
  load_parameters_part<VECTORS>(a.bias, column, width, bias);
  load_parameters_part<VECTORS>(a.gamma, column, width, gamma);
  load_parameters_part<VECTORS>(a.beta, column, width, beta);
  // Where nothing is added to a thread's columns their sum stands there already.
  bool adds = RESIDUAL || a.sum != a.x;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) adds |= bias[i] != 0.f;
  const int count = rows.count();
  T* const out = rows.target(a);
  wait_for_predecessor();
  release_successor();

  const int stride = gridDim.x;  // between the rows taken together, too
  int sources[ROWS];             // -1: past the last row, or a pad
  RowPart<T, VECTORS> x[ROWS], residual[ROWS];
  const auto fetch = [&](int first) {
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      x[r].clear();
      residual[r].clear();
      const int row = first + r * stride;
      sources[r] = row < count ? rows.source(row) : -1;
      if (sources[r] < 0) continue;
      const int64_t start = static_cast<int64_t>(sources[r]) * width;
      x[r].load(a.x + start, column, width);
      if constexpr (RESIDUAL) residual[r].load(a.residual + start, column, width);
    }
  };
  // Divided once a block: by how many columns the row has, and this warp.
  const float share = 1.f / width, warp_share = 1.f / min(max(width - warp * kWarp * kWidth, 1), kWarp * kWidth);
  int first = blockIdx.x;
  fetch(first);
  for (int step = 0; first < count; first += ROWS * stride, step ^= 1) {
    float values[ROWS][kWidth], mean[ROWS] = {}, squares[ROWS] = {};
    bool exists[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      float addends[kWidth];
      x[r].to_floats(values[r]);
      if constexpr (RESIDUAL) residual[r].to_floats(addends);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[r][i] += bias[i];
        if constexpr (RESIDUAL) values[r][i] += addends[i];
        mean[r] += values[r][i];
      }
      exists[r] = sources[r] >= 0;
      if (a.sum != nullptr && adds && exists[r]) {
        store_part<VECTORS>(a.sum + static_cast<int64_t>(sources[r]) * width, column, width, values[r]);
      }
    }
    fetch(first + ROWS * stride);
    warp_sums(mean);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      mean[r] = a.kind == NormKind::rms ? 0.f : mean[r] * warp_share;  // around zero, all parts merge around zero
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        values[r][i] -= mean[r];
        if (column + (VECTORS ? 0 : i) < width) squares[r] += values[r][i] * values[r][i];
      }
    }
    warp_sums(squares);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int r = 0; r < ROWS; ++r) parts[step][r][warp] = make_float2(mean[r], squares[r]);
    }
    __syncthreads();
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int row = first + r * stride;
      if (row >= count) break;
      const float2 whole = merge<WARPS, kWarp * kWidth>(parts[step][r], width, share);
      const float scale = rsqrtf(whole.y * share + a.epsilon), shift = (mean[r] - whole.x) * scale;
      const bool zero = Rows::kHasPads && !exists[r];
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[r][i] = zero ? 0.f : (values[r][i] * scale + shift) * gamma[i] + beta[i];
      store_part<VECTORS>(out + static_cast<int64_t>(row) * width, column, width, values[r]);
    }
  }
}

template <typename T, typename Rows>
cudaError_t launch_add_norm(const AddNorm<T>& a, const Rows& rows, int capacity, int width, bool vectors,
                            cudaStream_t stream, Order order) {
  const auto start_rows = [&](auto warps, auto together, auto whole_packs, auto residual) {
    constexpr int kWarps = decltype(warps)::value, kRows = decltype(together)::value;
    constexpr bool kVectors = decltype(whole_packs)::value, kResidual = decltype(residual)::value;
    const int blocks = std::min(capacity, DeviceInfo::current().multiprocessors * kNormBlocks<kWarps, kRows>);
    return launch(add_norm_kernel<T, kWarps, kRows, kVectors, kResidual, Rows>,
                  {dim3(blocks), dim3(kWarp, kWarps), 0, order, stream}, a, rows, width);
  };
  const auto start = [&](auto warps, auto whole_packs, auto residual) {
    constexpr int kWarps = decltype(warps)::value;
    constexpr bool kTwoOperands = sizeof(T) == 2 && decltype(residual)::value && !Rows::kHasPads;
    if constexpr (kTwoOperands && decltype(whole_packs)::value && (kWarps == 3 || kWarps == 4)) {
      if (capacity >= kManyNormRows) return start_rows(warps, std::integral_constant<int, 2>{}, whole_packs, residual);
    }
    return start_rows(warps, std::integral_constant<int, 1>{}, whole_packs, residual);
  };
  const auto start_with = [&](auto warps, auto whole_packs) {
    return a.residual != nullptr ? start(warps, whole_packs, std::true_type{})
                                 : start(warps, whole_packs, std::false_type{});
  };
  const int warps = (width + kWarp * kPackWidth<T> - 1) / (kWarp * kPackWidth<T>);
  if (warps > 32) return cudaErrorInvalidValue;
  if (!vectors || width % kPackWidth<T> != 0) {
    if (warps <= 4) return start_with(std::integral_constant<int, 4>{}, std::false_type{});
    return start_with(std::integral_constant<int, 32>{}, std::false_type{});
  }
  if (warps <= 1) return start_with(std::integral_constant<int, 1>{}, std::true_type{});
  if (warps <= 2) return start_with(std::integral_constant<int, 2>{}, std::true_type{});
  if (warps <= 3) return start_with(std::integral_constant<int, 3>{}, std::true_type{});
  if (warps <= 4) return start_with(std::integral_constant<int, 4>{}, std::true_type{});
  if (warps <= 8) return start_with(std::integral_constant<int, 8>{}, std::true_type{});
  return start_with(std::integral_constant<int, 32>{}, std::true_type{});
}

template <typename T>
bool add_norm_aligned(const AddNorm<T>& a) {
  return aligned(a.x) && aligned(a.bias) && aligned(a.residual) && aligned(a.gamma) && aligned(a.beta) &&
         aligned(a.out) && aligned(a.sum);
}

}  // namespace detail

// The first *tokens rows (device memory; nullptr: all `capacity` of them). Rows have at most 8,192 elements of two
// bytes or 4,096 of four (cudaErrorInvalidValue otherwise). With Order::kOverlap, *tokens must have been written no
// later than two kernels before this one on the stream, and the kernel in between must wait for its predecessor before
// it releases its successor.
template <typename T>
cudaError_t add_norm(const AddNorm<T>& a, const int* tokens, int capacity, int width, cudaStream_t stream,
                     Order order = Order::kOverlap) {
  return detail::launch_add_norm(a, detail::PackedRows<T>{tokens, capacity}, capacity, width,
                                 detail::add_norm_aligned(a), stream, order);
}

// The same into the call's own shape: call->out [batch, length, width], zeros on pads, or of a packed call [tokens,
// width]; a.out is not used, a.sum must be
// nullptr. slots and call as unpad wrote them, under the condition above. capacity bounds batch * length.
template <typename T>
cudaError_t add_norm_padded(const AddNorm<T>& a, const int* slots, const Call* call, int capacity, int width,
                            cudaStream_t stream, Order order = Order::kOverlap) {
  // call->out is not known here: torch aligns its tensors, and a row of whole packs keeps the alignment.
  return detail::launch_add_norm(a, detail::PaddedRows<T>{slots, call}, capacity, width, detail::add_norm_aligned(a),
                                 stream, order);
}

#define EFFT_ADD_NORM(T)                                                                       \
  template cudaError_t add_norm(const AddNorm<T>&, const int*, int, int, cudaStream_t, Order); \
  template cudaError_t add_norm_padded(const AddNorm<T>&, const int*, const Call*, int, int, cudaStream_t, Order);
#define EFFT_ADD_NORM_EXTERN(T)                                                                                   \
  extern template cudaError_t add_norm(const AddNorm<T>&, const int*, int, int, cudaStream_t, Order);             \
  extern template cudaError_t add_norm_padded(const AddNorm<T>&, const int*, const Call*, int, int, cudaStream_t, \
                                              Order);
EFFT_EACH_TYPE(EFFT_ADD_NORM_EXTERN)
#undef EFFT_ADD_NORM_EXTERN

}  // namespace efft::cuda
