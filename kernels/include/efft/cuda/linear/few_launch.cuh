// Host side of the kernel for few rows.
#pragma once

#include "efft/cuda/linear/few_kernel.cuh"
#include "efft/cuda/linear/linear.cuh"
#include "efft/cuda/linear/tensor_map.cuh"

namespace efft::cuda {

// Rows of w per copy: an even share for each block where that is a whole number of swizzle groups.
template <typename Tile>
int weight_box(int sharers) {
  const int share = Tile::kColumns / sharers;
  if (share * sharers == Tile::kColumns && share % 8 == 0 && share <= 256) return share;
  return Tile::kColumns % 24 == 0 ? 24 : 8;
}

template <typename Types, typename Tile, bool NORMALISE>
cudaError_t launch_few(const typename Types::Operand* x, const typename Types::Weight* w, LinearArguments<Types> a,
                       int capacity, int sharers, Order order, cudaStream_t stream) {
  a.sharers = sharers;
  a.weight_box = weight_box<Tile>(sharers);
  CUtensorMap x_map, w_map;
  cudaError_t error = encode_matrix(x, capacity, a.k, Tile::kRows, &x_map);
  if (error == cudaSuccess) error = encode_matrix(w, a.n, a.k, a.weight_box, &w_map);
  if (error != cudaSuccess) return error;
  const auto tiles = [](int size, int tile) { return (size + tile - 1) / tile; };
  const unsigned clusters = tiles(capacity, Tile::kRows * sharers) * tiles(a.n, Tile::kColumns);
  const unsigned cluster = sharers * Tile::kSplits;
  const Launch how{
      dim3(clusters * cluster), dim3(few_threads<Tile>(NORMALISE)), Tile::kSharedBytes, order, stream, cluster};
  return launch(few_rows_kernel<Types, Tile, NORMALISE>, how, x_map, w_map, a);
}

template <typename Tile>
bool is_choice(const FewChoice& c) {
  return c.rows == Tile::kRows && c.columns == Tile::kColumns && c.splits == Tile::kSplits &&
         (c.splits == 1 || c.sharers == 1);
}

// The tile by its description. Returns cudaErrorInvalidValue for one that is not compiled in.
template <typename Types, bool NORMALISE, typename... Tiles>
cudaError_t launch_few(TileList<Tiles...>, const typename Types::Operand* x, const typename Types::Weight* w,
                       const LinearArguments<Types>& a, int capacity, const FewChoice& choice, Order order,
                       cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  ((is_choice<Tiles>(choice) &&
    (error = launch_few<Types, Tiles, NORMALISE>(x, w, a, capacity, choice.sharers, order, stream), true)) ||
   ...);
  return error;
}

template <typename Types>
cudaError_t few_rows(const typename Types::Operand* x, const typename Types::Weight* w, const LinearArguments<Types>& a,
                     int capacity, const FewChoice& tile, Order order, cudaStream_t stream) {
  return a.norm.weight_sums == nullptr ? launch_few<Types, false>(FewTiles{}, x, w, a, capacity, tile, order, stream)
                                       : launch_few<Types, true>(FewTiles{}, x, w, a, capacity, tile, order, stream);
}

}  // namespace efft::cuda

#define EFFT_FEW_ROWS(...)                                                               \
  template cudaError_t few_rows(const __VA_ARGS__::Operand*, const __VA_ARGS__::Weight*, \
                                const LinearArguments<__VA_ARGS__>&, int, const FewChoice&, Order, cudaStream_t);
