#include "efft/cuda/wide_launch.cuh"

namespace efft::cuda {

EFFT_WIDE(__nv_bfloat16)

}  // namespace efft::cuda
