// Folds a LayerNorm's gamma and beta into the weights that follow it: see InputNorm in linear_arguments.cuh.
#pragma once

#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {

template <typename T>
struct Fold {
  const T* w;          // [n, k]
  const float* bias;   // [n]
  const float* gamma;  // [k]
  const float* beta;   // [k]
  T* folded;           // [n, k]: w * gamma
  float* sums;         // [n]: its row sums, of the rounded values
  float* folded_bias;  // [n]: bias + w · beta
};

// One warp a row of w.
template <typename T>
__global__ void __launch_bounds__(kWarp* kRowWarps) fold_kernel(Fold<T> f, int n, int k) {
  const int row = warp_row();
  if (row >= n) return;
  const int64_t start = static_cast<int64_t>(row) * k;
  float sum = 0.f, bias = 0.f;
  for (int i = threadIdx.x; i < k; i += kWarp) {
    const float w = to_float(f.w[start + i]);
    const T product = from_float<T>(w * f.gamma[i]);
    f.folded[start + i] = product;
    sum += to_float(product);
    bias += w * f.beta[i];
  }
  sum = warp_sum(sum), bias = warp_sum(bias);
  if (threadIdx.x == 0) {
    f.sums[row] = sum;
    f.folded_bias[row] = f.bias[row] + bias;
  }
}

template <typename T>
cudaError_t fold(const Fold<T>& f, int n, int k, cudaStream_t stream) {
  return launch(fold_kernel<T>, {row_grid(n), row_block(), 0, Order::kSerial, stream}, f, n, k);
}

}  // namespace efft::cuda
