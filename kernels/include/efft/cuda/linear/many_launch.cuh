// Host side of the kernel for many rows.
#pragma once

#include <algorithm>

#include "efft/cuda/linear/linear.cuh"
#include "efft/cuda/linear/many_kernel.cuh"
#include "efft/cuda/linear/tensor_map.cuh"

namespace efft::cuda {

// Starts a kernel whose blocks walk over tiles as ManyWalk says.
template <typename Tile, typename Types, typename Arguments>
cudaError_t launch_walk(void (*kernel)(const CUtensorMap, const CUtensorMap, const Arguments),
                        const typename Types::Operand* x, const typename Types::Weight* w, const Arguments& a,
                        int capacity, Order order, cudaStream_t stream) {
  CUtensorMap x_map, w_map;
  cudaError_t error = encode_matrix(x, capacity, a.k, Tile::kRows, &x_map);
  if (error == cudaSuccess) error = encode_matrix(w, a.n, a.k, Tile::kColumns, &w_map);
  if (error != cudaSuccess) return error;
  const int tiles = (capacity + Tile::kRows - 1) / Tile::kRows * ((a.n + Tile::kColumns - 1) / Tile::kColumns);
  const int blocks = std::min(tiles, DeviceInfo::current().multiprocessors);
  return launch(kernel, {dim3(blocks), dim3(Tile::kThreads), Tile::kSharedBytes, order, stream}, x_map, w_map, a);
}

template <typename Types>
cudaError_t many_rows(const typename Types::Operand* x, const typename Types::Weight* w,
                      const LinearArguments<Types>& a, int capacity, ManyCut cut, Order order, cudaStream_t stream) {
  using Together96 = ManyTile<96, Warpgroups::together>;
  using Together176 = ManyTile<176, Warpgroups::together>;
  using Together192 = ManyTile<192, Warpgroups::together>;
  using Together256 = ManyTile<256, Warpgroups::together>;
  const auto with = [&](auto tile, auto kind, auto normalise) {
    using Tile = decltype(tile);
    return launch_walk<Tile, Types>(many_rows_kernel<Types, Tile, kind.value, normalise.value>, x, w, a, capacity,
                                    order, stream);
  };
  constexpr std::integral_constant<Pointwise, Pointwise::none> none;
  constexpr std::integral_constant<Pointwise, Pointwise::gelu> gelu;
  const Epilogue<Types>& e = a.epilogue;
  const bool normalises = a.norm.weight_sums != nullptr;
  const auto either = [&](auto tile, auto kind) {
    return normalises ? with(tile, kind, std::true_type{}) : with(tile, kind, std::false_type{});
  };
  if (normalises && a.norm.parts(a.k) > kMostMoments) return cudaErrorInvalidValue;
  if (e.pointwise == Pointwise::gelu && e.residual == nullptr) {
    if (cut == ManyCut::columns96) return either(Together96{}, gelu);
    if (cut == ManyCut::columns176) return either(Together176{}, gelu);
    if (cut == ManyCut::columns192) return either(Together192{}, gelu);
    if (cut == ManyCut::turns192 && !normalises)
      return with(ManyTile<192, Warpgroups::in_turns>{}, gelu, std::false_type{});
  } else if (e.pointwise == Pointwise::none && !(normalises && e.residual != nullptr)) {
    if (cut == ManyCut::columns96) return either(Together96{}, none);
    if (cut == ManyCut::columns256 && e.residual_norm == nullptr && e.moments == nullptr)
      return either(Together256{}, none);
  }
  return cudaErrorInvalidValue;
}

}  // namespace efft::cuda

#define EFFT_MANY_ROWS(...)                                                               \
  template cudaError_t many_rows(const __VA_ARGS__::Operand*, const __VA_ARGS__::Weight*, \
                                 const LinearArguments<__VA_ARGS__>&, int, ManyCut, Order, cudaStream_t);
