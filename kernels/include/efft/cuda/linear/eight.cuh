// Products of operands of eight bits, by kernels of sm_90a and of sm_80: out = pointwise(scales * (x · w^T) + bias) +
// residual, in 16 bits, or again as an operand. Sums are exact for integers; those of e4m3 are what the matrix unit
// keeps of fp32 (see docs/kernels.md).
//
// Declarations only; kernels/cuda/linear/eight_*.cu hold the instantiations.
#pragma once

#include "efft/cuda/linear/choose.h"
#include "efft/cuda/linear/linear.cuh"
#include "efft/cuda/operand.cuh"

namespace efft::cuda {

template <typename OPERAND, typename RESULT, typename RESIDUAL>
using EightBitTypes = LinearTypes<OPERAND, typename EightBitWeight<OPERAND>::type, RESULT, RESIDUAL>;

// What the numbers on both sides stand for. With a row's scale and shift,
//   x · w^T = scale * scales[n] * sum + shift * sums[n].
struct EightBitScales {
  const RowNorm* rows;  // [tokens], or nullptr: `all` for every row
  RowNorm all;
  const float* columns;  // [n]: of the weights
  const float* sums;     // [n]: columns[n] times the sum of the row of weights; nullptr where shifts are 0
  FixedSteps result;     // where the result is an operand
};

template <typename Types>
struct EightBitArguments : LinearArguments<Types> {
  EightBitScales scales;
};

// x [capacity, k], w [n, k], all arrays aligned to 16 bytes, n and k multiples of 16. Only rows below *a.tokens (see
// linear.cuh) are computed and written. a.norm, and of the epilogue residual_norm and moments, are not read. Return
// cudaErrorInvalidValue for what is not compiled in: an activation other than GELU, or one with a residual; an operand
// as the result without GELU; another device.
template <typename Types>
cudaError_t eight_bit_rows(const typename Types::Operand* x, const typename Types::Weight* w,
                           const EightBitArguments<Types>& a, int capacity, EightBitCut cut, cudaStream_t stream,
                           Order order = Order::kOverlap);

}  // namespace efft::cuda
