// The second form of a model's matrices: those that follow a LayerNorm, times its gamma, with the vectors that go with
// them (see InputNorm in linear/arguments.cuh).
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "efft/program.h"

namespace efft::cuda {

template <typename T>
struct FoldedMatrix {
  T* w;         // [n, k]
  float* sums;  // [n], its row sums
  float* bias;  // [n]
};

// Of the matrix in a slot that the folded program multiplies a value by whose norm is still to do. folded: aligned to
// 256 bytes.
template <typename T>
FoldedMatrix<T> folded_matrix(const Lowered& encoder, const void* folded, int slot);

// Of all of them, for elements of two bytes.
size_t folded_bytes(const Lowered& encoder);

// Fills `folded` (folded_bytes) from the arenas of efft/weights.h, on `stream`. T: __half or __nv_bfloat16.
template <typename T>
cudaError_t fold_weights(const Lowered& encoder, const T* matrices, const float* vectors, void* folded,
                         cudaStream_t stream);

}  // namespace efft::cuda
