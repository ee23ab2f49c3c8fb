// What a wide linear kernel is told besides its two matrices.
#pragma once

#include "efft/cuda/types.cuh"

namespace efft::cuda {

// out = pointwise(x w^T + bias) + residual.
template <typename T>
struct WideArguments {
  const float* bias;  // [n] or nullptr
  const T* residual;  // [tokens, n] or nullptr; may be out
  T* out;             // [tokens, n]
  const int* tokens;  // device memory
  int n, k;           // multiples of 8
  int tiles_along_n;  // set by the launcher
};

}  // namespace efft::cuda
