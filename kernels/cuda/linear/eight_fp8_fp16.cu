#include "efft/cuda/linear/eight_launch.cuh"

namespace efft::cuda {

EFFT_EIGHT_BIT_ROWS(EightBitTypes<__nv_fp8_e4m3, __half, __half>)

}  // namespace efft::cuda
