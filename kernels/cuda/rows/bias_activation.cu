#include "efft/cuda/rows/bias_activation.cuh"

namespace efft::cuda {

EFFT_EACH_TYPE(EFFT_BIAS_ACTIVATION)

}  // namespace efft::cuda
