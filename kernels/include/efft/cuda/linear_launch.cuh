// Host side of the Hopper linear kernel: which tile a problem gets, and the launch.
#pragma once

#include "efft/cuda/linear.cuh"
#include "efft/cuda/linear_kernel.cuh"
#include "efft/cuda/tensor_map.cuh"

namespace efft::cuda {

// Rows of w per copy: an even share for each block where that is a whole number of swizzle groups.
template <typename Tile>
int weight_box(int sharers) {
  const int share = Tile::kColumns / sharers;
  if (share * sharers == Tile::kColumns && share % 8 == 0 && share <= 256) return share;
  return Tile::kColumns % 24 == 0 ? 24 : 8;
}

// out = epilogue(norm(x) · w^T) for rows below *a.tokens. x [capacity, k], w [n, k]; a.sharers and a.weight_box are set
// here.
template <typename T, typename Tile, bool NORMALISE>
cudaError_t launch_linear(const T* x, const T* w, LinearArguments<T> a, int capacity, int sharers, Order order,
                          cudaStream_t stream) {
  const auto kernel = linear_kernel<T, Tile, NORMALISE>;
  const int shared = Tile::kSharedBytes, cluster_size = sharers * Tile::kSplits;
  a.sharers = sharers;
  a.weight_box = weight_box<Tile>(sharers);
  CUtensorMap x_map, w_map;
  cudaError_t error = encode_matrix(x, capacity, a.k, Tile::kRows, &x_map);
  if (error == cudaSuccess) error = encode_matrix(w, a.n, a.k, a.weight_box, &w_map);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  const auto tiles = [](int size, int tile) { return (size + tile - 1) / tile; };
  const int clusters = tiles(capacity, Tile::kRows * sharers) * tiles(a.n, Tile::kColumns);

  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(cluster_size), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(clusters * cluster_size);
  config.blockDim = dim3(linear_threads<Tile>(NORMALISE));
  config.dynamicSmemBytes = shared;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = order == Order::kOverlap ? 2 : 1;
  return cudaLaunchKernelEx(&config, kernel, x_map, w_map, a);
}

template <typename Tile>
bool is_choice(const LinearChoice& c) {
  return c.rows == Tile::kRows && c.columns == Tile::kColumns && c.splits == Tile::kSplits &&
         (c.splits == 1 || c.sharers == 1);
}

// The tile by its description. Returns cudaErrorInvalidValue for one that is not compiled in.
template <typename T, bool NORMALISE, typename... Tiles>
cudaError_t launch_linear(TileList<Tiles...>, const T* x, const T* w, const LinearArguments<T>& a, int capacity,
                          const LinearChoice& choice, Order order, cudaStream_t stream) {
  cudaError_t error = cudaErrorInvalidValue;
  ((is_choice<Tiles>(choice) &&
    (error = launch_linear<T, Tiles, NORMALISE>(x, w, a, capacity, choice.sharers, order, stream), true)) ||
   ...);
  return error;
}

template <typename T>
cudaError_t linear(const T* x, const T* w, const LinearArguments<T>& a, int capacity, const LinearChoice& choice,
                   Order order, cudaStream_t stream) {
  return a.norm.weight_sums == nullptr
             ? launch_linear<T, false>(LinearTiles{}, x, w, a, capacity, choice, order, stream)
             : launch_linear<T, true>(LinearTiles{}, x, w, a, capacity, choice, order, stream);
}

}  // namespace efft::cuda

#define EFFT_LINEAR(T)                                                                                        \
  template cudaError_t linear(const T*, const T*, const LinearArguments<T>&, int, const LinearChoice&, Order, \
                              cudaStream_t);
