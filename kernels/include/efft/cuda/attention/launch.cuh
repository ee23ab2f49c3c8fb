// Host side of attention.cuh: launches the kernel that choose_attention picks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "efft/cuda/attention/attention.cuh"
#include "efft/cuda/attention/choose.h"
#include "efft/cuda/attention/packed.cuh"
#include "efft/cuda/attention/resident.cuh"
#include "efft/cuda/attention/ring.cuh"
#include "efft/cuda/attention/simt.cuh"
#include "efft/cuda/attention/tensor_map.cuh"

namespace efft::cuda {

template <typename T, int kHead, typename Score>
class AttentionLauncher {
 public:
  AttentionLauncher(const AttentionArguments<T, Score>& arguments, int capacity, Order order, cudaStream_t stream)
      : arguments_(arguments), capacity_(capacity), order_(order), stream_(stream) {}

  cudaError_t launch(const AttentionPlan& plan, int max_length) const {
    if constexpr (std::is_same_v<T, float>) {
      return simt();
    } else {
      switch (plan.kernel) {
        case AttentionKernel::ring:
          return ring(plan);
        case AttentionKernel::resident:
          if (plan.key_groups == 2) return resident<1, 2>(plan, max_length);
          return plan.row_groups == 2 ? resident<2, 1>(plan, max_length) : resident<1, 1>(plan, max_length);
        default:
          const bool vectors = arguments_.head_size % 8 == 0 && reinterpret_cast<uintptr_t>(arguments_.qkv) % 16 == 0;
          return vectors ? packed<16>() : packed<4>();
      }
    }
  }

 private:
  Launch how(dim3 blocks, int threads, int shared_bytes) const {
    return {blocks, dim3(threads), static_cast<size_t>(shared_bytes), order_, stream_};
  }
  static int ceil_divide(int a, int b) { return (a + b - 1) / b; }

  cudaError_t simt() const {
    using Tiles = attention_tiles::Simt<kHead>;
    const dim3 blocks(ceil_divide(capacity_, Tiles::kRows), arguments_.heads);
    return cuda::launch(attention_simt_kernel<kHead, Score>,
                        how(blocks, Tiles::kThreads, int(sizeof(SimtShared<kHead>))), arguments_);
  }

  // kBytes: of one copy.
  template <int kBytes>
  cudaError_t packed() const {
    using Tiles = attention_tiles::Packed;
    const dim3 blocks(ceil_divide(capacity_, Tiles::kRows), arguments_.heads);
    return cuda::launch(attention_packed_kernel<T, kHead, kBytes, Score>,
                        how(blocks, Tiles::kThreads, packed_shared_bytes<T, kHead>()), arguments_);
  }

  cudaError_t maps(int rows, AttentionMaps* maps) const {
    constexpr int kKeys = attention_tiles::Ring<kHead>::kKeys;
    static_assert(kKeys == attention_tiles::Resident<kHead>::kKeys);
    const auto encode = encode_tensor_map<T, kHead>;
    const auto& a = arguments_;
    const cudaError_t error = encode(&maps->queries, a.qkv, capacity_, a.width(), a.heads, rows, 1);
    if (error != cudaSuccess) return error;
    return encode(&maps->keys_values, a.qkv + a.context(), capacity_, a.width(), a.kv_heads, kKeys, 2);
  }

  cudaError_t ring(const AttentionPlan& plan) const {
    using Tiles = attention_tiles::Ring<kHead>;
    const int groups = plan.row_groups;
    AttentionMaps views;
    const cudaError_t error = maps(groups * Tiles::kGroupRows, &views);
    if (error != cudaSuccess) return error;
    return cuda::launch(
        attention_ring_kernel<T, kHead, Score>,
        how(dim3(plan.blocks), groups * Tiles::kGroupThreads, Pipeline<kHead>::shared_bytes(plan.stages, groups)),
        arguments_, views, RingGrid{plan.stages, plan.tiles});
  }

  template <int kRowGroups, int kKeyGroups>
  cudaError_t resident(const AttentionPlan& plan, int max_length) const {
    using Shared = Resident<kHead, kRowGroups, kKeyGroups>;
    AttentionMaps views;
    const cudaError_t error = maps(Shared::kRows, &views);
    if (error != cudaSuccess) return error;
    const dim3 blocks(ceil_divide(max_length, Shared::kRows), arguments_.heads, arguments_.batch);
    return cuda::launch(attention_resident_kernel<T, kHead, kRowGroups, kKeyGroups, Score>,
                        how(blocks, Shared::kThreads, Shared::shared_bytes(plan.stages)), arguments_, views,
                        plan.stages);
  }

  const AttentionArguments<T, Score>& arguments_;
  const int capacity_;
  const Order order_;
  const cudaStream_t stream_;
};

template <typename T>
constexpr Type kType = std::is_same_v<T, float>    ? Type::f32
                       : std::is_same_v<T, __half> ? Type::f16
                                                   : Type::bf16;

template <typename T, typename Score>
cudaError_t attention(const AttentionArguments<T, Score>& given, int max_length, int capacity, cudaStream_t stream,
                      Order order) {
  AttentionArguments<T, Score> a = given;
  constexpr int kLargestHead = 128;
  if (a.batch < 0 || a.heads < 1 || a.kv_heads < 1 || a.heads % a.kv_heads != 0 || a.head_size < 2 ||
      a.head_size > kLargestHead || a.head_size % 2 != 0) {
    return cudaErrorInvalidValue;
  }
  if (a.heads >= static_cast<int>(a.kShare) / (a.heads / a.kv_heads)) return cudaErrorInvalidValue;  // see kv_share
  a.kv_share = (a.kShare * a.kv_heads + a.heads - 1) / a.heads;
  if (a.operand_inverse != 0 && std::is_same_v<T, float>) return cudaErrorInvalidValue;
  if (a.batch == 0 || max_length <= 0 || capacity <= 0) return cudaSuccess;
  // The copy engine reads 16 bytes at a time.
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const AttentionShape shape{kType<T>,
                             a.batch,
                             a.heads,
                             a.head_size,
                             max_length,
                             capacity,
                             aligned(a.qkv) && aligned(a.q_bias) && aligned(a.v_bias) && aligned(a.out)};
  const AttentionPlan plan = choose_attention(DeviceInfo::current(), shape);
  const int head = compiled_head(a.head_size);
  if (head == 32) return AttentionLauncher<T, 32, Score>(a, capacity, order, stream).launch(plan, max_length);
  if (head == 64) return AttentionLauncher<T, 64, Score>(a, capacity, order, stream).launch(plan, max_length);
  return AttentionLauncher<T, 128, Score>(a, capacity, order, stream).launch(plan, max_length);
}

}  // namespace efft::cuda

#define EFFT_ATTENTION(T, SCORE) \
  template cudaError_t attention(const AttentionArguments<T, SCORE>&, int, int, cudaStream_t, Order);
