// A C door to the attention launchers for attention_lab.py, without torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/attention/launch.cuh"

namespace {

template <typename T, int kHead>
cudaError_t chosen(const efft::cuda::AttentionArguments<T>& arguments, int max_length, int capacity, cudaStream_t on,
                   bool programmatic, int choice) {
  using namespace efft::cuda;
  switch (choice) {
    case 1:
      return launch_mma<T, kHead, 16>(arguments, capacity, on, programmatic);
    case 2:
      return launch_wgmma<T, kHead>(arguments, max_length, capacity, on, programmatic);
    case 11:
      return launch_resident<T, kHead, 1, 1>(arguments, max_length, capacity, on, programmatic);
    case 21:
      return launch_resident<T, kHead, 2, 1>(arguments, max_length, capacity, on, programmatic);
    case 12:
      return launch_resident<T, kHead, 1, 2>(arguments, max_length, capacity, on, programmatic);
    default:
      return cudaErrorInvalidValue;
  }
}

// choice: 0 what the launcher takes, 1 the mma.sync kernel, 2 the persistent wgmma kernel, 10 r + k the resident one
// with r warpgroups for rows and k for keys.
template <typename T>
cudaError_t call(const void* qkv, const float* bias, const int* cu_seqlens, void* out, int batch, int heads,
                 int head_size, int max_length, int capacity, void* stream, int programmatic, int choice) {
  using namespace efft::cuda;
  const T* input = static_cast<const T*>(qkv);
  T* output = static_cast<T*>(out);
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  if constexpr (sizeof(T) == 2) {
    const AttentionArguments<T> arguments{input, bias, cu_seqlens, output, batch, heads, head_size};
    if (head_size == 32 && choice) return chosen<T, 32>(arguments, max_length, capacity, on, programmatic != 0, choice);
    if (head_size == 64 && choice) return chosen<T, 64>(arguments, max_length, capacity, on, programmatic != 0, choice);
  }
  return attention<T>(input, bias, cu_seqlens, output, batch, heads, head_size, max_length, capacity, on,
                      programmatic != 0);
}

}  // namespace

#define EFFT_LAB_ENTRY(name, T)                                                                                     \
  extern "C" int name(const void* qkv, const float* bias, const int* cu_seqlens, void* out, int batch, int heads,   \
                      int head_size, int max_length, int capacity, void* stream, int programmatic, int choice) {    \
    return call<T>(qkv, bias, cu_seqlens, out, batch, heads, head_size, max_length, capacity, stream, programmatic, \
                   choice);                                                                                         \
  }

EFFT_LAB_ENTRY(attention_float16, __half)
EFFT_LAB_ENTRY(attention_bfloat16, __nv_bfloat16)
EFFT_LAB_ENTRY(attention_float32, float)
