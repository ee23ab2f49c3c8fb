#include "efft/cuda/linear/many_launch.cuh"

namespace efft::cuda {

EFFT_MANY_ROWS(LinearTypes<__half>)

}  // namespace efft::cuda
