#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/attention/launch.cuh"

namespace efft::cuda {

EFFT_ATTENTION(float, WindowScores)
EFFT_ATTENTION(__half, WindowScores)
EFFT_ATTENTION(__nv_bfloat16, WindowScores)

}  // namespace efft::cuda
