#include "efft/cuda/rows/add_norm.cuh"

namespace efft::cuda {

EFFT_EACH_TYPE(EFFT_ADD_NORM)

}  // namespace efft::cuda
