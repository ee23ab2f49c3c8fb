// A C door to the attention launchers for attention_lab.py, without torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/attention_launch.cuh"

namespace {

// packed: the mma.sync kernel where the launcher would take wgmma.
template <typename T>
cudaError_t call(const void* qkv, const float* bias, const int* cu_seqlens, void* out, int batch, int heads,
                 int head_size, int max_length, int capacity, void* stream, int programmatic, int packed) {
  using namespace efft::cuda;
  const T* input = static_cast<const T*>(qkv);
  T* output = static_cast<T*>(out);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if constexpr (sizeof(T) == 2) {
    const AttentionArguments<T> arguments{input, bias, cu_seqlens, output, batch, heads, head_size};
    if (packed && head_size == 64) return launch_mma<T, 64, 16>(arguments, capacity, on, programmatic != 0);
    if (packed && head_size == 32) return launch_mma<T, 32, 16>(arguments, capacity, on, programmatic != 0);
  }
  return attention<T>(input, bias, cu_seqlens, output, batch, heads, head_size, max_length, capacity, on,
                      programmatic != 0);
}

}  // namespace

#define EFFT_LAB_ENTRY(name, T)                                                                                     \
  extern "C" int name(const void* qkv, const float* bias, const int* cu_seqlens, void* out, int batch, int heads,   \
                      int head_size, int max_length, int capacity, void* stream, int programmatic, int packed) {    \
    return call<T>(qkv, bias, cu_seqlens, out, batch, heads, head_size, max_length, capacity, stream, programmatic, \
                   packed);                                                                                         \
  }

EFFT_LAB_ENTRY(attention_float16, __half)
EFFT_LAB_ENTRY(attention_bfloat16, __nv_bfloat16)
EFFT_LAB_ENTRY(attention_float32, float)
