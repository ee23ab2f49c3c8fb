// What is done to a product's value besides adding its bias. No CUDA header.
#pragma once

#include "efft/activation.h"

namespace efft::cuda {

// No activation, or the one of the same name: a row of rows/pointwise.cuh each.
enum class Pointwise { none, EFFT_ACTIVATIONS(EFFT_NAME) };

inline Pointwise pointwise(Activation activation) { return static_cast<Pointwise>(static_cast<int>(activation) + 1); }

}  // namespace efft::cuda
