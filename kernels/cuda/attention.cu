// The attention kernels for the types of the encoder.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/attention_launch.cuh"

namespace efft::cuda {

template cudaError_t attention<float>(const float*, const float*, const int*, float*, int, int, int, int, int,
                                      cudaStream_t, bool);
template cudaError_t attention<__half>(const __half*, const float*, const int*, __half*, int, int, int, int, int,
                                       cudaStream_t, bool);
template cudaError_t attention<__nv_bfloat16>(const __nv_bfloat16*, const float*, const int*, __nv_bfloat16*, int, int,
                                              int, int, int, cudaStream_t, bool);

}  // namespace efft::cuda
