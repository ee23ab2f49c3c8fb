#include "efft/cuda/linear/eight_launch.cuh"

namespace efft::cuda {

EFFT_EIGHT_BIT_ROWS(EightBitTypes<uint8_t, __half, __half>)

}  // namespace efft::cuda
