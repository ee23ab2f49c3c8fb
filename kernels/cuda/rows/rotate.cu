#include "efft/cuda/rows/rotate.cuh"

namespace efft::cuda {

EFFT_EACH_TYPE(EFFT_ROTATE)

}  // namespace efft::cuda
