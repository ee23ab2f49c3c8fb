#include "efft/cuda/wide_launch.cuh"

namespace efft::cuda {

EFFT_WIDE(__half)

}  // namespace efft::cuda
