// What a Hopper linear kernel is told besides its two matrices.
#pragma once

#include "efft/cuda/types.cuh"

namespace efft::cuda {

// A row's LayerNorm before gamma and beta: x * scale + shift.
struct RowNorm {
  float scale, shift;
};

// Mean of some neighbouring elements of a row, and the sum of the squares around it.
struct Moments {
  float mean, squares;
};

constexpr int kMostMoments = 16;  // of a row that the wide kernel can normalise

// out = pointwise(product + bias) + residual, the residual normalised on the fly where residual_norm is given.
template <typename T>
struct Epilogue {
  const float* bias;  // [n] or nullptr
  Pointwise pointwise;
  const T* residual;             // [tokens, n] or nullptr
  const RowNorm* residual_norm;  // [tokens] or nullptr: the residual as it is
  const float* gamma;            // [n], where residual_norm is given
  const float* beta;             // [n]
  T* out;                        // [tokens, n]
  Moments* moments;              // [tokens, tiles along n] of out's rows, a tile's columns each; or nullptr, as where
                                 // there is no residual
};

// LayerNorm of the input rows x, folded into the product. With w' = w * gamma (each row times gamma),
//   norm(x) · w^T = scale * (x · w'^T) + shift * (row sums of w') + w · beta,
// so the matrix unit multiplies x as it is, and the row's scale and shift are needed only in the epilogue.
struct InputNorm {
  const float* weight_sums;  // [n], row sums of the folded weights; nullptr: no norm
  float epsilon;
  const Moments* moments;  // [tokens, parts] of the rows of x, from the epilogue of the kernel that made them
  int part_width;          // elements that each of them tells of; the last may tell of fewer
  RowNorm* rows;           // [tokens], written: what the residual's normalisation needs later

  __host__ __device__ int parts(int k) const { return (k + part_width - 1) / part_width; }
};

template <typename T>
struct LinearArguments {
  Epilogue<T> epilogue;
  InputNorm norm;
  const int* tokens;
  int n;
  int k;
  // Set by the launcher.
  int sharers;     // neighbouring tiles along the tokens whose blocks share copies of the weights
  int weight_box;  // rows of w per copy
};

}  // namespace efft::cuda
