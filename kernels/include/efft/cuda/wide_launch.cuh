// Host side of the wide linear kernel.
#pragma once

#include <algorithm>

#include "efft/cuda/tensor_map.cuh"
#include "efft/cuda/wide.cuh"
#include "efft/cuda/wide_kernel.cuh"

namespace efft::cuda {

// out = pointwise(x · w^T + bias) + residual for rows below *a.tokens. x [capacity, k], w [n, k].
template <typename T, typename Tile, Pointwise KIND>
cudaError_t launch_wide(const T* x, const T* w, WideArguments<T> a, int capacity, Order order, cudaStream_t stream) {
  const auto kernel = wide_kernel<T, Tile, KIND>;
  CUtensorMap x_map, w_map;
  cudaError_t error = encode_matrix(x, capacity, a.k, Tile::kRows, &x_map);
  if (error == cudaSuccess) error = encode_matrix(w, a.n, a.k, Tile::kColumns, &w_map);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  int multiprocessors = 0;
  if (error == cudaSuccess) error = multiprocessor_count(&multiprocessors);
  if (error != cudaSuccess) return error;
  a.tiles_along_n = (a.n + Tile::kColumns - 1) / Tile::kColumns;
  const int tiles = (capacity + Tile::kRows - 1) / Tile::kRows * a.tiles_along_n;
  return launch(kernel, dim3(std::min(tiles, multiprocessors)), dim3(Tile::kThreads), Tile::kSharedBytes, order, stream,
                x_map, w_map, a);
}

template <typename T>
cudaError_t wide_linear(const T* x, const T* w, const WideArguments<T>& a, int capacity, Pointwise pointwise,
                        WideCut cut, cudaStream_t stream, Order order) {
  const auto with = [&](auto tile, auto kind) {
    return launch_wide<T, decltype(tile), kind.value>(x, w, a, capacity, order, stream);
  };
  constexpr std::integral_constant<Pointwise, Pointwise::none> none;
  constexpr std::integral_constant<Pointwise, Pointwise::gelu> gelu;
  if (pointwise == Pointwise::gelu && a.residual == nullptr) {
    if (cut == WideCut::columns96) return with(WideTile<96, Warpgroups::together>{}, gelu);
    if (cut == WideCut::columns176) return with(WideTile<176, Warpgroups::together>{}, gelu);
    if (cut == WideCut::columns192) return with(WideTile<192, Warpgroups::together>{}, gelu);
    if (cut == WideCut::turns192) return with(WideTile<192, Warpgroups::in_turns>{}, gelu);
  } else if (pointwise == Pointwise::none) {
    if (cut == WideCut::columns96) return with(WideTile<96, Warpgroups::together>{}, none);
    if (cut == WideCut::columns256) return with(WideTile<256, Warpgroups::together>{}, none);
  }
  return cudaErrorInvalidValue;
}

}  // namespace efft::cuda

#define EFFT_WIDE(T)                                                                                                   \
  template cudaError_t wide_linear(const T*, const T*, const WideArguments<T>&, int, Pointwise, WideCut, cudaStream_t, \
                                   Order);
