// Host side of the wide linear kernel.
#pragma once

#include <algorithm>

#include "efft/cuda/tensor_map.cuh"
#include "efft/cuda/wide.cuh"
#include "efft/cuda/wide_kernel.cuh"

namespace efft::cuda {

template <typename T, typename Tile, Pointwise KIND, bool NORMALISE>
cudaError_t launch_wide(const T* x, const T* w, const LinearArguments<T>& a, int capacity, Order order,
                        cudaStream_t stream) {
  const auto kernel = wide_kernel<T, Tile, KIND, NORMALISE>;
  CUtensorMap x_map, w_map;
  cudaError_t error = encode_matrix(x, capacity, a.k, Tile::kRows, &x_map);
  if (error == cudaSuccess) error = encode_matrix(w, a.n, a.k, Tile::kColumns, &w_map);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Tile::kSharedBytes);
  int multiprocessors = 0;
  if (error == cudaSuccess) error = multiprocessor_count(&multiprocessors);
  if (error != cudaSuccess) return error;
  const int tiles = (capacity + Tile::kRows - 1) / Tile::kRows * ((a.n + Tile::kColumns - 1) / Tile::kColumns);
  return launch(kernel, dim3(std::min(tiles, multiprocessors)), dim3(Tile::kThreads), Tile::kSharedBytes, order, stream,
                x_map, w_map, a);
}

template <typename T>
cudaError_t wide_linear(const T* x, const T* w, const LinearArguments<T>& a, int capacity, WideCut cut, Order order,
                        cudaStream_t stream) {
  using Together96 = WideTile<96, Warpgroups::together>;
  using Together176 = WideTile<176, Warpgroups::together>;
  using Together192 = WideTile<192, Warpgroups::together>;
  using Together256 = WideTile<256, Warpgroups::together>;
  const auto with = [&](auto tile, auto kind, auto normalise) {
    return launch_wide<T, decltype(tile), kind.value, normalise.value>(x, w, a, capacity, order, stream);
  };
  constexpr std::integral_constant<Pointwise, Pointwise::none> none;
  constexpr std::integral_constant<Pointwise, Pointwise::gelu> gelu;
  const Epilogue<T>& e = a.epilogue;
  const bool normalises = a.norm.weight_sums != nullptr;
  const auto either = [&](auto tile, auto kind) {
    return normalises ? with(tile, kind, std::true_type{}) : with(tile, kind, std::false_type{});
  };
  if (normalises && a.norm.parts(a.k) > kMostMoments) return cudaErrorInvalidValue;
  if (e.pointwise == Pointwise::gelu && e.residual == nullptr) {
    if (cut == WideCut::columns96) return either(Together96{}, gelu);
    if (cut == WideCut::columns176) return either(Together176{}, gelu);
    if (cut == WideCut::columns192) return either(Together192{}, gelu);
    if (cut == WideCut::turns192 && !normalises)
      return with(WideTile<192, Warpgroups::in_turns>{}, gelu, std::false_type{});
  } else if (e.pointwise == Pointwise::none && !(normalises && e.residual != nullptr)) {
    if (cut == WideCut::columns96) return either(Together96{}, none);
    if (cut == WideCut::columns256 && e.residual_norm == nullptr && e.moments == nullptr)
      return either(Together256{}, none);
  }
  return cudaErrorInvalidValue;
}

}  // namespace efft::cuda

#define EFFT_WIDE(T) \
  template cudaError_t wide_linear(const T*, const T*, const LinearArguments<T>&, int, WideCut, Order, cudaStream_t);
