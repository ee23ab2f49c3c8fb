// What the linear kernels of sm_90a are told besides their two matrices.
#pragma once

#include "efft/cuda/linear/choose.h"
#include "efft/cuda/types.cuh"

namespace efft::cuda {

// The four types of a product. Kernels count the depth in bytes: a type of another size needs its rows in
// ptx/wgmma.cuh and kTensorMapType, no other kernel.
template <typename OPERAND, typename WEIGHT = OPERAND, typename RESULT = OPERAND, typename RESIDUAL = RESULT>
struct LinearTypes {
  using Operand = OPERAND;
  using Weight = WEIGHT;
  using Result = RESULT;
  using Residual = RESIDUAL;
  static_assert(sizeof(OPERAND) == sizeof(WEIGHT), "the matrix unit takes both operands in one width");
};

// Elements in so many bytes of the depth.
template <typename Types>
constexpr int elements_in(int bytes) {
  return bytes / static_cast<int>(sizeof(typename Types::Operand));
}

// A row's LayerNorm before gamma and beta: x * scale + shift.
struct RowNorm {
  float scale, shift;
};

// Mean of some neighbouring elements of a row, and the sum of the squares around it.
struct Moments {
  float mean, squares;
};

// out = pointwise(product + bias) + residual, the residual normalised on the fly where residual_norm is given.
template <typename Types>
struct Epilogue {
  const float* bias;  // [n] or nullptr
  Pointwise pointwise;
  const typename Types::Residual* residual;  // [tokens, n] or nullptr
  const RowNorm* residual_norm;              // [tokens] or nullptr: the residual as it is
  const float* gamma;                        // [n], where residual_norm is given
  const float* beta;                         // [n]
  typename Types::Result* out;               // [tokens, n]
  Moments* moments;  // [tokens, tiles along n] of out's rows, a tile's columns each; or nullptr, as where there is no
                     // residual
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

template <typename Types>
struct LinearArguments {
  Epilogue<Types> epilogue;
  InputNorm norm;
  const int* tokens;
  int n;
  int k;
  // Set by the launcher.
  int sharers;     // neighbouring tiles along the tokens whose blocks share copies of the weights
  int weight_box;  // rows of w per copy
};

}  // namespace efft::cuda
