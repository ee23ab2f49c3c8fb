#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/attention/launch.cuh"

namespace efft::cuda {

EFFT_ATTENTION(float, BiasScores)
EFFT_ATTENTION(__half, BiasScores)
EFFT_ATTENTION(__nv_bfloat16, BiasScores)

}  // namespace efft::cuda
