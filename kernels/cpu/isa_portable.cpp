#include "efft/cpu/instantiate.h"

namespace efft::cpu {

extern const Kernels kernels_portable;
const Kernels kernels_portable = instantiate("portable");

}  // namespace efft::cpu
