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
enum RowVector { kBias, kGamma, kBeta, kFactors, kRowVectors };

template <int CHUNKS>
struct RowVectors {
  float4 values[kRowVectors][CHUNKS][2][kWarp];

  __device__ __forceinline__ void read(RowVector vector, int chunk, float (&to)[8]) const {
    const float4 low = values[vector][chunk][0][threadIdx.x], high = values[vector][chunk][1][threadIdx.x];
    to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
    to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
  }
};

// A thread's share of them, of THREADS threads, on the way from global to shared memory: all loads are under way, and
// those of the first rows behind them, before any is waited for.
template <int CHUNKS, int THREADS>
struct RowVectorShare {
  static constexpr int kFours = 2 * kWarp * CHUNKS;  // of a vector
  static constexpr int kEach = (kRowVectors * kFours + THREADS - 1) / THREADS;
  float4 fours[kEach];

  // Zeros past the row's end, or without a vector.
  __device__ __forceinline__ void load(const float* const (&from)[kRowVectors], int width, int thread) {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int i = thread + e * THREADS, four = i % kFours;
      const float* vector = nullptr;
#pragma unroll
      for (int v = 0; v < kRowVectors; ++v) vector = i / kFours == v ? from[v] : vector;
      const bool inside = vector != nullptr && 4 * four < width;
      fours[e] = inside ? __ldg(reinterpret_cast<const float4*>(vector + 4 * four)) : make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }
  __device__ __forceinline__ void store(RowVectors<CHUNKS>& to, int thread) const {
#pragma unroll
    for (int e = 0; e < kEach; ++e) {
      const int i = thread + e * THREADS, four = i % kFours;
      if (i < kRowVectors * kFours) to.values[i / kFours][four / (2 * kWarp)][four % 2][four / 2 % kWarp] = fours[e];
    }
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
  __shared__ RowVectors<CHUNKS> vectors;
  const int count = tokens == nullptr ? capacity : min(*tokens, capacity);
  const int thread = threadIdx.y * kWarp + threadIdx.x;
  RowVectorShare<CHUNKS, kWarps * kWarp> share_of_vectors;
  share_of_vectors.load({a.bias, a.gamma, a.beta, to.factors}, width, thread);
  const float share = 1.f / width;
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
  share_of_vectors.store(vectors, thread);
  __syncthreads();
  for (; row < count; row += stride) {
    const int64_t start = int64_t{row} * width;
    float values[CHUNKS][kWidth], vector[kWidth], mean = 0.f, low = 0.f, high = 0.f;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      x[c].to_floats(values[c]);
      if (a.bias != nullptr) {
        vectors.read(kBias, c, vector);
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
      vectors.read(kGamma, c, vector);
      vectors.read(kBeta, c, shift);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) values[c][i] = values[c][i] * scale * vector[i] + shift[i];
      if (a.out != nullptr && inside(c)) store(a.out + start + column(c), values[c]);
      if (to.factors != nullptr) {
        vectors.read(kFactors, c, vector);
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
