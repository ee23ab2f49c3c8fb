#include "efft/cpu/instantiate.h"

namespace efft::cpu {

extern const Kernels kernels_avx512bf16;
const Kernels kernels_avx512bf16 = instantiate("avx512bf16");

}  // namespace efft::cpu
