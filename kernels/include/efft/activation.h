// The activations: a line here, a function of that name in cpu/math.h, a case in cuda/rows/pointwise.cuh.
//
// Without the rest of the spec, since files compiled for different instruction sets include this.
#pragma once

#define EFFT_ACTIVATIONS(each) each(gelu) each(gelu_tanh) each(relu) each(silu)

#define EFFT_NAME(name) name,

namespace efft {

enum class Activation { EFFT_ACTIVATIONS(EFFT_NAME) };

}  // namespace efft
