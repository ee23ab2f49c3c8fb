#include "efft/cuda/linear/many_launch.cuh"

namespace efft::cuda {

EFFT_MANY_ROWS(LinearTypes<__nv_bfloat16>)

}  // namespace efft::cuda
