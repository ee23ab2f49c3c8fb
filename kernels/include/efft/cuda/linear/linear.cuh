// Products with weights on sm_90a, out = epilogue(norm(x) · w^T), by the kernel for few rows or the one for many
// (arguments.cuh says what the epilogue may be, choose.h which kernel a product gets). Sums in fp32.
//
// Declarations only; kernels/cuda/linear/few_*.cu and many_*.cu hold the instantiations, LinearTypes<__half> and
// LinearTypes<__nv_bfloat16>.
#pragma once

#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear/arguments.cuh"
#include "efft/cuda/linear/choose.h"

namespace efft::cuda {

// x [capacity, k], w [n, k], all arrays aligned to 16 bytes, own_linear(n, k). Only rows below *a.tokens (device
// memory, older than the kernel in front: see launch.cuh) are computed and written. Return cudaErrorInvalidValue for
// what is not compiled in: another tile; an activation, or the input's norm, together with a residual; the residual's
// norm or moments with another cut than columns96.
template <typename Types>
cudaError_t few_rows(const typename Types::Operand* x, const typename Types::Weight* w, const LinearArguments<Types>& a,
                     int capacity, const FewChoice& tile, Order order, cudaStream_t stream);
template <typename Types>
cudaError_t many_rows(const typename Types::Operand* x, const typename Types::Weight* w,
                      const LinearArguments<Types>& a, int capacity, ManyCut cut, Order order, cudaStream_t stream);

// By the plan's kernel, which is not the library's.
template <typename Types>
cudaError_t linear(const typename Types::Operand* x, const typename Types::Weight* w, const LinearArguments<Types>& a,
                   int capacity, const LinearPlan& plan, cudaStream_t stream, Order order = Order::kOverlap) {
  return plan.backend == Backend::many_rows ? many_rows(x, w, a, capacity, plan.cut, order, stream)
                                            : few_rows(x, w, a, capacity, plan.tile, order, stream);
}

}  // namespace efft::cuda
