#include "efft/cuda/linear_launch.cuh"

namespace efft::cuda {

EFFT_LINEAR(__half)

}  // namespace efft::cuda
