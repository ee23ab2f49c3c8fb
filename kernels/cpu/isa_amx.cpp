#include "efft/cpu/instantiate.h"

namespace efft::cpu {

extern const Kernels kernels_amx;
const Kernels kernels_amx = instantiate("amx");

}  // namespace efft::cpu
