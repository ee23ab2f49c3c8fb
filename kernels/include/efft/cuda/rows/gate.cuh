// activation(gate + bias) * (up + bias) of the two halves of a row, the middle of a gated feed-forward block (Shazeer
// 2020, "GLU Variants Improve Transformer"). Bound by memory: each element read once, half as many written.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/rows/pointwise.cuh"
#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {

constexpr int kGateThreads = 256;

namespace detail {

// From here on a thread takes its columns of four rows, so that it reads their biases once.
constexpr int kManyGateRows = 1024;

template <typename T, int WIDTH, int ROWS, Pointwise KIND>
__global__ void __launch_bounds__(kGateThreads)
    gate_kernel(const T* x, const float* bias, T* out, const int* tokens, int capacity, int width) {
  wait_for_predecessor();
  release_successor();
  const int packs_a_row = width / WIDTH;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
  const int64_t rows = tokens == nullptr ? capacity : *tokens, first = pack / packs_a_row * ROWS;
  if (first >= rows) return;
  const int column = static_cast<int>(pack % packs_a_row) * WIDTH;
  const T* const from = x + first * 2 * width + column;
  float gate[ROWS][WIDTH], up[ROWS][WIDTH];
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (first + r >= rows) break;
    load(from + r * 2 * static_cast<int64_t>(width), gate[r]);
    load(from + (r * 2 + 1) * static_cast<int64_t>(width), up[r]);
  }
  float b[WIDTH] = {}, c[WIDTH] = {};
  if (bias != nullptr) {
    load_parameters(bias + column, b);
    load_parameters(bias + width + column, c);
  }
#pragma unroll
  for (int r = 0; r < ROWS; ++r) {
    if (first + r >= rows) break;
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) gate[r][i] += b[i], up[r][i] += c[i];
    apply<KIND, T>(gate[r]);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) gate[r][i] *= up[r][i];
    store(out + (first + r) * width + column, gate[r]);
  }
}

template <typename T, int WIDTH, int ROWS>
cudaError_t launch_gate(const T* x, const float* bias, Pointwise kind, T* out, const int* tokens, int capacity,
                        int width, cudaStream_t stream, Order order) {
#define EFFT_PICK(name) \
  if (kind == Pointwise::name) kernel = gate_kernel<T, WIDTH, ROWS, Pointwise::name>;
  auto kernel = gate_kernel<T, WIDTH, ROWS, Pointwise::none>;
  EFFT_ACTIVATIONS(EFFT_PICK)
#undef EFFT_PICK
  const int64_t packs = static_cast<int64_t>((capacity + ROWS - 1) / ROWS) * (width / WIDTH);
  const dim3 grid(static_cast<unsigned>((packs + kGateThreads - 1) / kGateThreads));
  return launch(kernel, {grid, dim3(kGateThreads), 0, order, stream}, x, bias, out, tokens, capacity, width);
}

}  // namespace detail

// x [rows, 2 * width], bias [2 * width] or nullptr, out [rows, width], not x; the first *tokens rows (device memory;
// nullptr: all capacity).
template <typename T>
cudaError_t gate(const T* x, const float* bias, Pointwise kind, T* out, const int* tokens, int capacity, int width,
                 cudaStream_t stream, Order order = Order::kOverlap) {
  if (width % kPackWidth<T> == 0 && aligned(x) && aligned(bias) && aligned(out)) {
    if (capacity >= detail::kManyGateRows)
      return detail::launch_gate<T, kPackWidth<T>, 4>(x, bias, kind, out, tokens, capacity, width, stream, order);
    return detail::launch_gate<T, kPackWidth<T>, 1>(x, bias, kind, out, tokens, capacity, width, stream, order);
  }
  return detail::launch_gate<T, 1, 1>(x, bias, kind, out, tokens, capacity, width, stream, order);
}

#define EFFT_GATE(T) \
  template cudaError_t gate(const T*, const float*, Pointwise, T*, const int*, int, int, cudaStream_t, Order);
#define EFFT_GATE_EXTERN(T) extern EFFT_GATE(T)
EFFT_EACH_TYPE(EFFT_GATE_EXTERN)
#undef EFFT_GATE_EXTERN

}  // namespace efft::cuda
