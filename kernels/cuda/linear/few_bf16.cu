#include "efft/cuda/linear/few_launch.cuh"

namespace efft::cuda {

EFFT_FEW_ROWS(LinearTypes<__nv_bfloat16>)

}  // namespace efft::cuda
