#include "efft/cuda/linear_launch.cuh"

namespace efft::cuda {

EFFT_LINEAR(__nv_bfloat16)

}  // namespace efft::cuda
