// activation(gate + bias) * (up + bias) of the two halves of a row, the middle of a gated feed-forward block (Shazeer
// 2020, "GLU Variants Improve Transformer"). Bound by memory: each element read once, half as many written.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/rows/pointwise.cuh"
#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {

constexpr int kGateThreads = 256;

namespace detail {

template <typename T, int WIDTH, Pointwise KIND>
__global__ void __launch_bounds__(kGateThreads)
    gate_kernel(const T* x, const float* bias, T* out, const int* tokens, int capacity, int width) {
  wait_for_predecessor();
  release_successor();
  const int packs_a_row = width / WIDTH;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
  const int64_t rows = tokens == nullptr ? capacity : *tokens;
  if (pack >= rows * packs_a_row) return;
  const int64_t row = pack / packs_a_row;
  const int column = static_cast<int>(pack % packs_a_row) * WIDTH;
  const T* const from = x + row * 2 * width + column;
  float gate[WIDTH], up[WIDTH];
  load(from, gate);
  load(from + width, up);
  if (bias != nullptr) {
    float b[WIDTH], c[WIDTH];
    load_parameters(bias + column, b);
    load_parameters(bias + width + column, c);
#pragma unroll
    for (int i = 0; i < WIDTH; ++i) gate[i] += b[i], up[i] += c[i];
  }
  apply<KIND, T>(gate);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) gate[i] *= up[i];
  store(out + row * width + column, gate);
}

template <typename T, int WIDTH>
cudaError_t launch_gate(const T* x, const float* bias, Pointwise kind, T* out, const int* tokens, int capacity,
                        int width, cudaStream_t stream, Order order) {
#define EFFT_PICK(name) \
  if (kind == Pointwise::name) kernel = gate_kernel<T, WIDTH, Pointwise::name>;
  auto kernel = gate_kernel<T, WIDTH, Pointwise::none>;
  EFFT_ACTIVATIONS(EFFT_PICK)
#undef EFFT_PICK
  const int64_t packs = static_cast<int64_t>(capacity) * (width / WIDTH);
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
    return detail::launch_gate<T, kPackWidth<T>>(x, bias, kind, out, tokens, capacity, width, stream, order);
  }
  return detail::launch_gate<T, 1>(x, bias, kind, out, tokens, capacity, width, stream, order);
}

#define EFFT_GATE(T) \
  template cudaError_t gate(const T*, const float*, Pointwise, T*, const int*, int, int, cudaStream_t, Order);
#define EFFT_GATE_EXTERN(T) extern EFFT_GATE(T)
EFFT_EACH_TYPE(EFFT_GATE_EXTERN)
#undef EFFT_GATE_EXTERN

}  // namespace efft::cuda
