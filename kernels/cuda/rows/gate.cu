#include "efft/cuda/rows/gate.cuh"

namespace efft::cuda {

EFFT_EACH_TYPE(EFFT_GATE)

}  // namespace efft::cuda
