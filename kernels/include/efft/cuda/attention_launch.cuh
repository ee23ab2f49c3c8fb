// Host side of attention.cuh: picks the kernel for a shape and launches it.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

#include "efft/cuda/attention.cuh"
#include "efft/cuda/attention_mma.cuh"
#include "efft/cuda/attention_resident.cuh"
#include "efft/cuda/attention_simt.cuh"
#include "efft/cuda/attention_tensor_map.cuh"
#include "efft/cuda/attention_wgmma.cuh"

namespace efft::cuda {

struct AttentionGrid {
  dim3 blocks;
  int threads;
  int shared_bytes;
  cudaStream_t stream;
  bool programmatic;
};

template <typename... Parameters, typename... Values>
cudaError_t launch_attention(void (*kernel)(Parameters...), const AttentionGrid& grid, const Values&... values) {
  constexpr int kDefaultSharedBytes = 48 * 1024;
  if (grid.shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, grid.shared_bytes);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attribute;
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid.blocks;
  config.blockDim = dim3(grid.threads);
  config.dynamicSmemBytes = grid.shared_bytes;
  config.stream = grid.stream;
  config.attrs = &attribute;
  config.numAttrs = grid.programmatic ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, values...);
}

inline int ceil_divide(int a, int b) { return (a + b - 1) / b; }

template <typename T, int kHead, int kBytes>
cudaError_t launch_mma(const AttentionArguments<T>& arguments, int capacity, cudaStream_t stream, bool programmatic) {
  using Tiles = attention_tiles::Mma;
  const dim3 blocks(ceil_divide(capacity, Tiles::kRows), arguments.heads);
  const AttentionGrid grid{blocks, Tiles::kThreads, mma_shared_bytes<T, kHead>(), stream, programmatic};
  return launch_attention(attention_mma_kernel<T, kHead, kBytes>, grid, arguments);
}

template <int kHead>
cudaError_t launch_simt(const AttentionArguments<float>& arguments, int capacity, cudaStream_t stream,
                        bool programmatic) {
  using Tiles = attention_tiles::Simt<kHead>;
  const dim3 blocks(ceil_divide(capacity, Tiles::kRows), arguments.heads);
  const AttentionGrid grid{blocks, Tiles::kThreads, int(sizeof(SimtShared<kHead>)), stream, programmatic};
  return launch_attention(attention_simt_kernel<kHead>, grid, arguments);
}

// Multiprocessors of the current device if it runs the sm_90a code of this library, otherwise -1. A library without
// that code still has the kernel's name, with an empty body.
template <typename T, int kHead>
int wgmma_multiprocessors() {
  constexpr int kDevices = 64;
  static std::atomic<int> known[kDevices];  // 0: not asked yet
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess || device >= kDevices) return -1;
  if (known[device] == 0) {
    cudaFuncAttributes attributes = {};
    int major = 0;
    int minor = 0;
    int multiprocessors = 0;
    const bool asked =
        cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
        cudaFuncGetAttributes(&attributes, attention_wgmma_kernel<T, kHead>) == cudaSuccess;
    const bool runs = asked && major == 9 && minor == 0 && attributes.ptxVersion >= 90 && tensor_map_encoder();
    known[device] = runs ? multiprocessors : -1;
  }
  return known[device];
}

template <typename T, int kHead>
bool supports_wgmma(const AttentionArguments<T>& arguments) {
  // The copy engine reads 16 bytes at a time.
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  return arguments.head_size == kHead && aligned(arguments.qkv) && aligned(arguments.bias) && aligned(arguments.out) &&
         wgmma_multiprocessors<T, kHead>() > 0;
}

// Tiles of `rows` rows at most, of all heads. Both bounds hold: every sequence may have the longest length, or all may
// leave a tile incomplete.
template <typename T>
int most_tiles(const AttentionArguments<T>& arguments, int max_length, int capacity, int rows) {
  return arguments.heads * std::min(arguments.batch * ceil_divide(max_length, rows), capacity / rows + arguments.batch);
}

// Whether so many short sequences are at hand that they had better share tiles.
template <typename T, int kHead>
bool prefers_packed(const AttentionArguments<T>& arguments, int max_length, int capacity) {
  using Packed = attention_tiles::Mma;
  using Tiles = attention_tiles::Wgmma<kHead>;
  const int resident = wgmma_multiprocessors<T, kHead>() * Tiles::blocks_per_multiprocessor(1);
  return max_length <= Packed::kPackedLength &&
         most_tiles(arguments, max_length, capacity, Tiles::kGroupRows) > Packed::kPackedRounds * resident;
}

template <typename T, int kHead>
cudaError_t launch_wgmma(const AttentionArguments<T>& arguments, int max_length, int capacity, cudaStream_t stream,
                         bool programmatic) {
  using Tiles = attention_tiles::Wgmma<kHead>;
  const int multiprocessors = wgmma_multiprocessors<T, kHead>();
  // Two warpgroups share what they read; while there are multiprocessors to spare, each is faster alone on one.
  const int single_tiles = most_tiles(arguments, max_length, capacity, Tiles::kGroupRows);
  const bool spare = single_tiles <= multiprocessors;
  const int groups = spare || max_length <= Tiles::kGroupRows ? 1 : Tiles::kMaxGroups;
  const int rows = groups * Tiles::kGroupRows;
  const int tiles = most_tiles(arguments, max_length, capacity, rows);
  const int stages = Tiles::stages(spare ? Tiles::kMaxGroups : groups);
  const int blocks = std::min(tiles, multiprocessors * Tiles::blocks_per_multiprocessor(groups));
  AttentionMaps maps;
  cudaError_t error = encode_tensor_map<T, kHead>(&maps.queries, arguments.qkv, capacity, arguments.heads, rows, 1);
  if (error != cudaSuccess) return error;
  error = encode_tensor_map<T, kHead>(&maps.keys_values, arguments.qkv, capacity, arguments.heads, Tiles::kKeys, 2);
  if (error != cudaSuccess) return error;
  const AttentionGrid grid{dim3(blocks), groups * Tiles::kGroupThreads, Pipeline<kHead>::shared_bytes(stages, groups),
                           stream, programmatic};
  return launch_attention(attention_wgmma_kernel<T, kHead>, grid, arguments, maps, WgmmaGrid{stages, tiles});
}

// Stages of the resident kernel: for the longest sequence, and one for each warpgroup to leave its result in.
inline int resident_stages(int max_length, int key_groups) {
  return std::max(key_groups, ceil_divide(max_length, attention_tiles::Resident<64>::kKeys));
}

// Whether all blocks of the resident kernel run at once, so that none pays for its start but the first.
template <typename T, int kHead, int kRowGroups, int kKeyGroups>
bool fits_at_once(const AttentionArguments<T>& arguments, int max_length, int capacity) {
  using Shared = Resident<kHead, kRowGroups, kKeyGroups>;
  using Tiles = attention_tiles::Resident<kHead>;
  constexpr int kMultiprocessorBytes = 228 * 1024;
  constexpr int kReservedBytes = 1024;  // of every block, by the driver
  const int stages = resident_stages(max_length, kKeyGroups);
  if (stages > Tiles::kMaxStages) return false;
  const int blocks = std::min(Tiles::blocks_per_multiprocessor(Shared::kGroups),
                              kMultiprocessorBytes / (Shared::shared_bytes(stages) + kReservedBytes));
  return most_tiles(arguments, max_length, capacity, Shared::kRows) <= blocks * wgmma_multiprocessors<T, kHead>();
}

template <typename T, int kHead, int kRowGroups, int kKeyGroups>
cudaError_t launch_resident(const AttentionArguments<T>& arguments, int max_length, int capacity, cudaStream_t stream,
                            bool programmatic) {
  using Shared = Resident<kHead, kRowGroups, kKeyGroups>;
  const int stages = resident_stages(max_length, kKeyGroups);
  AttentionMaps maps;
  cudaError_t error =
      encode_tensor_map<T, kHead>(&maps.queries, arguments.qkv, capacity, arguments.heads, Shared::kRows, 1);
  if (error != cudaSuccess) return error;
  error = encode_tensor_map<T, kHead>(&maps.keys_values, arguments.qkv, capacity, arguments.heads,
                                      attention_tiles::Resident<kHead>::kKeys, 2);
  if (error != cudaSuccess) return error;
  const dim3 blocks(ceil_divide(max_length, Shared::kRows), arguments.heads, arguments.batch);
  const AttentionGrid grid{blocks, Shared::kThreads, Shared::shared_bytes(stages), stream, programmatic};
  return launch_attention(attention_resident_kernel<T, kHead, kRowGroups, kKeyGroups>, grid, arguments, maps, stages);
}

// The kernel of sm_90a that suits a shape.
template <typename T, int kHead>
cudaError_t launch_hopper(const AttentionArguments<T>& arguments, int max_length, int capacity, cudaStream_t stream,
                          bool programmatic) {
  using Tiles = attention_tiles::Resident<kHead>;
  const bool spare =
      most_tiles(arguments, max_length, capacity, Tiles::kGroupRows) <= wgmma_multiprocessors<T, kHead>();
  if (spare && max_length >= Tiles::kDividedLength && fits_at_once<T, kHead, 1, 2>(arguments, max_length, capacity)) {
    return launch_resident<T, kHead, 1, 2>(arguments, max_length, capacity, stream, programmatic);
  }
  if (fits_at_once<T, kHead, 1, 1>(arguments, max_length, capacity)) {
    return launch_resident<T, kHead, 1, 1>(arguments, max_length, capacity, stream, programmatic);
  }
  if (fits_at_once<T, kHead, 2, 1>(arguments, max_length, capacity)) {
    return launch_resident<T, kHead, 2, 1>(arguments, max_length, capacity, stream, programmatic);
  }
  return launch_wgmma<T, kHead>(arguments, max_length, capacity, stream, programmatic);
}

template <typename T, int kHead>
cudaError_t launch_for_head(const AttentionArguments<T>& arguments, int max_length, int capacity, cudaStream_t stream,
                            bool programmatic) {
  if constexpr (std::is_same_v<T, float>) {
    return launch_simt<kHead>(arguments, capacity, stream, programmatic);
  } else {
    if (supports_wgmma<T, kHead>(arguments) && !prefers_packed<T, kHead>(arguments, max_length, capacity)) {
      return launch_hopper<T, kHead>(arguments, max_length, capacity, stream, programmatic);
    }
    const bool aligned = arguments.head_size % 8 == 0 && reinterpret_cast<uintptr_t>(arguments.qkv) % 16 == 0;
    if (aligned) return launch_mma<T, kHead, 16>(arguments, capacity, stream, programmatic);
    return launch_mma<T, kHead, 4>(arguments, capacity, stream, programmatic);
  }
}

template <typename T>
cudaError_t attention(const T* qkv, const float* bias, const int* cu_seqlens, T* out, int batch, int heads,
                      int head_size, int max_length, int capacity_tokens, cudaStream_t stream, bool programmatic) {
  constexpr int kLargestHead = 128;
  if (batch < 0 || heads < 1 || head_size < 2 || head_size > kLargestHead || head_size % 2 != 0) {
    return cudaErrorInvalidValue;
  }
  if (batch == 0 || max_length <= 0 || capacity_tokens <= 0) return cudaSuccess;
  const AttentionArguments<T> arguments{qkv, bias, cu_seqlens, out, batch, heads, head_size};
  if (head_size <= 32) return launch_for_head<T, 32>(arguments, max_length, capacity_tokens, stream, programmatic);
  if (head_size <= 64) return launch_for_head<T, 64>(arguments, max_length, capacity_tokens, stream, programmatic);
  return launch_for_head<T, 128>(arguments, max_length, capacity_tokens, stream, programmatic);
}

}  // namespace efft::cuda
