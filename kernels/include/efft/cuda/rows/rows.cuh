// Row kernels give one warp to one row and keep the row in registers: lane l holds the packs l, l + 32, ...
// A row of the width W takes ceil(W / (32 * pack width)) packs a lane; the launchers pick the instantiation.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/types.cuh"
#include "efft/spec.h"

namespace efft::cuda {

constexpr int kWarp = 32;
constexpr int kRowWarps = 4;  // rows of one block; 8 leaves a tail of idle warps at few tokens and is no faster at many

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
  return x;
}

template <int WIDTH>
__device__ __forceinline__ int pack_column(int chunk) {
  return (chunk * kWarp + static_cast<int>(threadIdx.x)) * WIDTH;
}

// Row of this warp. Blocks are (32, kRowWarps).
__device__ __forceinline__ int warp_row() { return blockIdx.x * kRowWarps + threadIdx.y; }

// (values - mean) / sqrt(variance + epsilon) * gamma + beta, in place; values hold zeros past the width. rms: without
// the mean, and the mean of the squares for the variance. The variance is taken around the mean (two passes over
// registers): E[x^2] - E[x]^2 would cancel.
template <int WIDTH, int CHUNKS>
__device__ __forceinline__ void normalise(float (&values)[CHUNKS][WIDTH], int width, const float* gamma,
                                          const float* beta, float epsilon, NormKind kind) {
  float sum = 0.f;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c)
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) sum += values[c][i];
  const float mean = kind == NormKind::rms ? 0.f : warp_sum(sum) / width;
  float squares = 0.f;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    if (pack_column<WIDTH>(c) >= width) continue;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) {
      values[c][i] -= mean;
      squares += values[c][i] * values[c][i];
    }
  }
  const float scale = rsqrtf(warp_sum(squares) / width + epsilon);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int column = pack_column<WIDTH>(c);
    if (column >= width) continue;
    float g[WIDTH], b[WIDTH];
    load_parameters(gamma + column, g);
    load_parameters(beta + column, b);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[c][i] = values[c][i] * scale * g[i] + b[i];
  }
}

inline bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <int WIDTH, int CHUNKS>
struct RowShape {
  static constexpr int kWidth = WIDTH;
  static constexpr int kChunks = CHUNKS;
};

// Calls body(RowShape<...>) with the smallest instantiation that holds a row. Rows that 16-byte packs do not divide
// go element by element. Returns cudaErrorInvalidValue for rows wider than any instantiation (2,048 unaligned
// elements; 4,096 of two bytes or 2,048 of four otherwise).
template <typename T, typename Body>
cudaError_t for_row_width(int width, bool pointers_aligned, Body&& body) {
  constexpr int kWidth = kPackWidth<T>;
  if (width % kWidth != 0 || !pointers_aligned) {
    return width <= 64 * kWarp ? body(RowShape<1, 64>{}) : cudaErrorInvalidValue;
  }
  const int chunks = (width / kWidth + kWarp - 1) / kWarp;
  if (chunks <= 1) return body(RowShape<kWidth, 1>{});
  if (chunks <= 2) return body(RowShape<kWidth, 2>{});
  if (chunks <= 3) return body(RowShape<kWidth, 3>{});
  if (chunks <= 4) return body(RowShape<kWidth, 4>{});
  if (chunks <= 6) return body(RowShape<kWidth, 6>{});
  if (chunks <= 8) return body(RowShape<kWidth, 8>{});
  if (chunks <= 16) return body(RowShape<kWidth, 16>{});
  return cudaErrorInvalidValue;
}

inline dim3 row_grid(int rows) { return dim3((rows + kRowWarps - 1) / kRowWarps); }
inline dim3 row_block() { return dim3(kWarp, kRowWarps); }

}  // namespace efft::cuda
