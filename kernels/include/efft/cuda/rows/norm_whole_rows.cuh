// LayerNorm whose result is an operand of eight bits, where there are rows enough for every warp to have one to itself.
#pragma once

#include "efft/cuda/operand.cuh"
#include "efft/cuda/rows/add_norm.cuh"

namespace efft::cuda::detail {

// Of the block that a multiprocessor holds, where a warp has a whole row: as many as have registers for it.
template <int CHUNKS>
constexpr int kWholeRowWarps = CHUNKS > 3 ? 20 : 24;

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

// Takes the mean off a warp's row. Returns one over its standard deviation.
template <bool FULL, int CHUNKS, int WIDTH>
__device__ __forceinline__ float centre(float (&values)[CHUNKS][WIDTH], float mean, int width, float share,
                                        float epsilon) {
  float squares = 0.f;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    if (!FULL && pack_column<WIDTH>(c) >= width) continue;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      values[c][i] -= mean;
      squares += values[c][i] * values[c][i];
    }
  }
  return rsqrtf(warp_sum(squares) * share + epsilon);
}

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
    float values[CHUNKS][kWidth], vector[kWidth], mean = 0.f, low = 0.f, high = 0.f;
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
    const float scale = centre<FULL>(values, warp_sum(mean) * share, width, share, a.epsilon);
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

}  // namespace efft::cuda::detail
