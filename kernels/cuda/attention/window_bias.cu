#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/attention/launch.cuh"

namespace efft::cuda {

EFFT_ATTENTION(float, WindowBiasScores)
EFFT_ATTENTION(__half, WindowBiasScores)
EFFT_ATTENTION(__nv_bfloat16, WindowBiasScores)

}  // namespace efft::cuda
