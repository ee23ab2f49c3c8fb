// activation(x + bias), where no product's epilogue does it. Bound by memory: each element read and written once.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/rows/pointwise.cuh"
#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {

constexpr int kPointwiseThreads = 256;

namespace detail {

template <typename T, int WIDTH, Pointwise KIND>
__global__ void __launch_bounds__(kPointwiseThreads)
    bias_activation_kernel(const T* x, const float* bias, T* out, const int* tokens, int capacity, int width) {
  wait_for_predecessor();
  release_successor();
  const int packs_a_row = width / WIDTH;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kPointwiseThreads + threadIdx.x;
  const int64_t rows = tokens == nullptr ? capacity : *tokens;
  if (pack >= rows * packs_a_row) return;
  const int column = static_cast<int>(pack % packs_a_row) * WIDTH;
  float values[WIDTH], b[WIDTH];
  load(x + pack * WIDTH, values);
  load_parameters(bias + column, b);
#pragma unroll
  for (int i = 0; i < WIDTH; ++i) values[i] = apply<KIND, T>(values[i] + b[i]);
  store(out + pack * WIDTH, values);
}

template <typename T, int WIDTH>
cudaError_t launch_bias_activation(const T* x, const float* bias, Pointwise kind, T* out, const int* tokens,
                                   int capacity, int width, cudaStream_t stream, Order order) {
#define EFFT_PICK(name) \
  if (kind == Pointwise::name) kernel = bias_activation_kernel<T, WIDTH, Pointwise::name>;
  auto kernel = bias_activation_kernel<T, WIDTH, Pointwise::none>;
  EFFT_ACTIVATIONS(EFFT_PICK)
#undef EFFT_PICK
  const int64_t packs = static_cast<int64_t>(capacity) * (width / WIDTH);
  const dim3 grid(static_cast<unsigned>((packs + kPointwiseThreads - 1) / kPointwiseThreads));
  return launch(kernel, {grid, dim3(kPointwiseThreads), 0, order, stream}, x, bias, out, tokens, capacity, width);
}

}  // namespace detail

// x, out [rows, width] (out may be x), bias [width]; the first *tokens rows (device memory; nullptr: all capacity).
template <typename T>
cudaError_t bias_activation(const T* x, const float* bias, Pointwise kind, T* out, const int* tokens, int capacity,
                            int width, cudaStream_t stream, Order order = Order::kOverlap) {
  if (width % kPackWidth<T> == 0 && aligned(x) && aligned(bias) && aligned(out)) {
    return detail::launch_bias_activation<T, kPackWidth<T>>(x, bias, kind, out, tokens, capacity, width, stream, order);
  }
  return detail::launch_bias_activation<T, 1>(x, bias, kind, out, tokens, capacity, width, stream, order);
}

#define EFFT_BIAS_ACTIVATION(T)                                                                                   \
  template cudaError_t bias_activation(const T*, const float*, Pointwise, T*, const int*, int, int, cudaStream_t, \
                                       Order);
#define EFFT_BIAS_ACTIVATION_EXTERN(T) extern EFFT_BIAS_ACTIVATION(T)
EFFT_EACH_TYPE(EFFT_BIAS_ACTIVATION_EXTERN)
#undef EFFT_BIAS_ACTIVATION_EXTERN

}  // namespace efft::cuda
