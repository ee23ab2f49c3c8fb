// What is done to a product's value besides adding its bias. No CUDA header.
#pragma once

#include "efft/spec.h"
#include "efft/types.h"

namespace efft::cuda {

enum class Pointwise { none, EFFT_ACTIVATIONS(EFFT_NAME) };

inline Pointwise pointwise(Activation activation) {
  switch (activation) {
#define EFFT_CASE(name)  \
  case Activation::name: \
    return Pointwise::name;
    EFFT_ACTIVATIONS(EFFT_CASE)
#undef EFFT_CASE
  }
  return Pointwise::none;
}

}  // namespace efft::cuda
