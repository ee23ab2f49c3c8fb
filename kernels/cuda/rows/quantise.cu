#include "efft/cuda/rows/quantise.cuh"

namespace efft::cuda {

EFFT_EACH_OPERAND(EFFT_QUANTISE)

}  // namespace efft::cuda
