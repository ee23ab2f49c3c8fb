#include "efft/cuda/rows/embed_norm.cuh"

namespace efft::cuda {

EFFT_EACH_TYPE(EFFT_EMBED_NORM)

}  // namespace efft::cuda
