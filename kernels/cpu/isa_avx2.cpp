#include "efft/cpu/instantiate.h"

namespace efft::cpu {

extern const Kernels kernels_avx2;
const Kernels kernels_avx2 = instantiate("avx2");

}  // namespace efft::cpu
