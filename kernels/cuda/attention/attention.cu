// The attention kernels for the types of the encoder; those of other policies than full attention stand beside this
// file.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/attention/launch.cuh"

namespace efft::cuda {

EFFT_ATTENTION(float, FullScores)
EFFT_ATTENTION(__half, FullScores)
EFFT_ATTENTION(__nv_bfloat16, FullScores)

}  // namespace efft::cuda
