// LayerNorm(x + bias + residual), the end of an attention or feed-forward block.
// Bound by memory: two rows read and one written a token (two where the sum is wanted too).
#pragma once

#include "efft/cuda/rows.cuh"

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
};

namespace detail {

template <typename T, int WIDTH, int CHUNKS>
__global__ void __launch_bounds__(kWarp* kRowWarps, kRowBlocks<CHUNKS>)
    add_norm_kernel(AddNorm<T> a, const int* tokens, int capacity, int width) {
  wait_for_predecessor();
  release_successor();
  const int row = warp_row();
  if (row >= capacity) return;
  // Not waited for before the row is read: rows between the two numbers exist, they just mean nothing.
  const int count = tokens == nullptr ? capacity : *tokens;
  const int64_t start = static_cast<int64_t>(row) * width;
  float values[CHUNKS][WIDTH];
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int column = pack_column<WIDTH>(c);
    float bias[WIDTH], residual[WIDTH];
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[c][i] = bias[i] = residual[i] = 0.f;
    if (column < width) {
      load(a.x + start + column, values[c]);
      if (a.residual != nullptr) load(a.residual + start + column, residual);
      if (a.bias != nullptr) load_parameters(a.bias + column, bias);
    }
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) values[c][i] += bias[i] + residual[i];
  }
  if (row >= count) return;
  if (a.sum != nullptr) {
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const int column = pack_column<WIDTH>(c);
      if (column < width) store(a.sum + start + column, values[c]);
    }
  }
  normalise(values, width, a.gamma, a.beta, a.epsilon);
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const int column = pack_column<WIDTH>(c);
    if (column < width) store(a.out + start + column, values[c]);
  }
}

}  // namespace detail

// The first *tokens rows (device memory; nullptr: all `capacity` of them).
template <typename T>
cudaError_t add_norm(const AddNorm<T>& a, const int* tokens, int capacity, int width, cudaStream_t stream,
                     Order order = Order::kOverlap) {
  const bool vectors = aligned(a.x) && aligned(a.bias) && aligned(a.residual) && aligned(a.gamma) && aligned(a.beta) &&
                       aligned(a.out) && aligned(a.sum);
  return for_row_width<T>(width, vectors, [&](auto shape) {
    using Shape = decltype(shape);
    return launch(detail::add_norm_kernel<T, Shape::kWidth, Shape::kChunks>, row_grid(capacity), row_block(), 0, order,
                  stream, a, tokens, capacity, width);
  });
}

#define EFFT_ADD_NORM(T) template cudaError_t add_norm(const AddNorm<T>&, const int*, int, int, cudaStream_t, Order);
#define EFFT_ADD_NORM_EXTERN(T) extern EFFT_ADD_NORM(T)
EFFT_EACH_TYPE(EFFT_ADD_NORM_EXTERN)
#undef EFFT_ADD_NORM_EXTERN

}  // namespace efft::cuda
