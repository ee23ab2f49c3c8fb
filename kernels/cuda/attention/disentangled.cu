#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "efft/cuda/attention/choose.h"
#include "efft/cuda/attention/disentangled.cuh"
#include "efft/cuda/attention/disentangled_mma.cuh"
#include "efft/cuda/attention/disentangled_simt.cuh"

namespace efft::cuda {
namespace {

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

template <typename T, int kHead>
cudaError_t launch_with(const DisentangledArguments<T>& d, int max_length, cudaStream_t stream, Order order) {
  const auto grid = [&](int rows, int* tiles) {
    *tiles = (max_length + rows - 1) / rows;
    return dim3(static_cast<unsigned>(*tiles) * static_cast<unsigned>(d.attention.batch), d.attention.heads);
  };
  int tiles = 0;
  if constexpr (std::is_same_v<T, float>) {
    using Shared = DisentangledSimtShared<kHead>;
    const dim3 blocks = grid(Shared::kTile, &tiles);
    return launch(attention_disentangled_simt_kernel<kHead>,
                  {blocks, dim3(Shared::kThreads), sizeof(Shared), order, stream}, d, tiles);
  } else {
    using Tiles = DisentangledTiles<kHead>;
    const dim3 blocks = grid(Tiles::kRows, &tiles);
    const Launch how{blocks, dim3(Tiles::kThreads), size_t(Tiles::shared_bytes()), order, stream};
    const bool vectors = d.attention.head_size % 8 == 0 && aligned(d.attention.qkv) && aligned(d.position_keys) &&
                         aligned(d.position_queries);
    return vectors ? launch(attention_disentangled_kernel<T, kHead, 16>, how, d, tiles)
                   : launch(attention_disentangled_kernel<T, kHead, 4>, how, d, tiles);
  }
}

}  // namespace

template <typename T>
cudaError_t disentangled_attention(const DisentangledArguments<T>& d, int max_length, cudaStream_t stream,
                                   Order order) {
  const auto& a = d.attention;
  if (a.batch < 0 || a.heads < 1 || a.kv_heads != a.heads || a.head_size < 2 || a.head_size > 128 ||
      a.head_size % 2 != 0 || a.q_bias != nullptr) {
    return cudaErrorInvalidValue;
  }
  if (a.batch == 0 || max_length <= 0) return cudaSuccess;
  const int head = compiled_head(a.head_size);
  if (head == 32) return launch_with<T, 32>(d, max_length, stream, order);
  if (head == 64) return launch_with<T, 64>(d, max_length, stream, order);
  return launch_with<T, 128>(d, max_length, stream, order);
}

#define EFFT_DISENTANGLED(T) \
  template cudaError_t disentangled_attention(const DisentangledArguments<T>&, int, cudaStream_t, Order);
EFFT_DISENTANGLED(float)
EFFT_DISENTANGLED(__half)
EFFT_DISENTANGLED(__nv_bfloat16)

}  // namespace efft::cuda
