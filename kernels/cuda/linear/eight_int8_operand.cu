#include "efft/cuda/linear/eight_launch.cuh"

namespace efft::cuda {

EFFT_EIGHT_BIT_ROWS(EightBitTypes<uint8_t, uint8_t, __half>)

}  // namespace efft::cuda
