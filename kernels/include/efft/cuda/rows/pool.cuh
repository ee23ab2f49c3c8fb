// What leaves the encoder where not every token does: the first token of a sequence, or the mean of its tokens.
#pragma once

#include "efft/cuda/call.cuh"
#include "efft/cuda/rows/rows.cuh"
#include "efft/spec.h"

namespace efft::cuda {

constexpr int kMeanTokens = 8;  // tokens of one sequence that a block sums at a time, one row of threads each
constexpr int kMeanRun = 32;    // tokens that a thread adds one after the other

namespace detail {

// Copies the row `from`, or writes zeros where there is none, one warp a row.
template <typename T, int WIDTH>
__device__ __forceinline__ void copy_row(const T* from, T* to, int width) {
  for (int column = threadIdx.x * WIDTH; column < width; column += kWarp * WIDTH) {
    auto pack = from == nullptr ? Pack<T, WIDTH>{} : *reinterpret_cast<const Pack<T, WIDTH>*>(from + column);
    *reinterpret_cast<Pack<T, WIDTH>*>(to + column) = pack;
  }
}

template <typename T, int WIDTH>
__global__ void __launch_bounds__(kWarp* kRowWarps)
    first_kernel(const T* hidden, const int* cu_seqlens, const Call* call, int width) {
  wait_for_predecessor();
  release_successor();
  const int64_t b = warp_row();
  if (b >= call->batch) return;
  const int64_t slot = cu_seqlens[b];
  const bool empty = cu_seqlens[b + 1] == slot;
  copy_row<T, WIDTH>(empty ? nullptr : hidden + slot * width, static_cast<T*>(call->out) + b * width, width);
}

// Block (32, kMeanTokens) takes 32 columns of one sequence. The order of summation depends on the sequence alone, so
// a sequence's mean has the same bits in any batch.
template <typename T>
__global__ void __launch_bounds__(kWarp* kMeanTokens)
    mean_kernel(const T* hidden, const int* cu_seqlens, const Call* call, int width) {
  wait_for_predecessor();
  release_successor();
  __shared__ float sums[kMeanTokens][kWarp];
  const int b = blockIdx.x, column = blockIdx.y * kWarp + threadIdx.x;
  if (b >= call->batch) return;
  const int begin = cu_seqlens[b], end = cu_seqlens[b + 1];
  // In runs: one after the other the rows of a long text would lose digits.
  float sum = 0.f;
  if (column < width) {
    for (int first = begin + threadIdx.y; first < end; first += kMeanRun * kMeanTokens) {
      float run = 0.f;
      for (int t = first; t < min(end, first + kMeanRun * kMeanTokens); t += kMeanTokens) {
        run += to_float(hidden[static_cast<int64_t>(t) * width + column]);
      }
      sum += run;
    }
  }
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
#pragma unroll
  for (int i = 1; i < kMeanTokens; ++i) sum += sums[i][threadIdx.x];
  static_cast<T*>(call->out)[static_cast<int64_t>(b) * width + column] =
      from_float<T>(end > begin ? sum / (end - begin) : 0.f);
}

}  // namespace detail

// hidden [tokens, width]; cu_seqlens and call as unpad wrote them. Writes call->out [batch, width], zeros where a
// sequence is empty. output: first or mean (cudaErrorInvalidValue otherwise). batch_capacity bounds batch.
template <typename T>
cudaError_t pool(const T* hidden, Output output, const int* cu_seqlens, const Call* call, int batch_capacity, int width,
                 cudaStream_t stream, Order order = Order::kOverlap) {
  if (output == Output::mean) {
    const dim3 grid(batch_capacity, (width + kWarp - 1) / kWarp);
    return launch(detail::mean_kernel<T>, {grid, dim3(kWarp, kMeanTokens), 0, order, stream}, hidden, cu_seqlens, call,
                  width);
  }
  if (output != Output::first) return cudaErrorInvalidValue;
  // call->out is not known here: torch aligns its tensors, and a row of whole packs keeps the alignment.
  const bool packs = width % kPackWidth<T> == 0 && aligned(hidden);
  const auto kernel = packs ? detail::first_kernel<T, kPackWidth<T>> : detail::first_kernel<T, 1>;
  return launch(kernel, {row_grid(batch_capacity), row_block(), 0, order, stream}, hidden, cu_seqlens, call, width);
}

#define EFFT_POOL(T) \
  template cudaError_t pool(const T*, Output, const int*, const Call*, int, int, cudaStream_t, Order);
#define EFFT_POOL_EXTERN(T) extern EFFT_POOL(T)
EFFT_EACH_TYPE(EFFT_POOL_EXTERN)
#undef EFFT_POOL_EXTERN

}  // namespace efft::cuda
