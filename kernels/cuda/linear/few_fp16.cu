#include "efft/cuda/linear/few_launch.cuh"

namespace efft::cuda {

EFFT_FEW_ROWS(LinearTypes<__half>)

}  // namespace efft::cuda
