#include "efft/cuda/rows/pool.cuh"

namespace efft::cuda {

EFFT_EACH_TYPE(EFFT_POOL)

}  // namespace efft::cuda
