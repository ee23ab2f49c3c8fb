#include "efft/cpu/instantiate.h"

namespace efft::cpu {

extern const Kernels kernels_avx512;
const Kernels kernels_avx512 = instantiate("avx512");

}  // namespace efft::cpu
