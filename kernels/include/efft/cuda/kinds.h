// What is done to a product's value besides adding its bias. No CUDA header.
#pragma once

#include "efft/spec.h"
#include "efft/types.h"

namespace efft::cuda {

enum class Pointwise { none, gelu, gelu_tanh, relu };

inline Pointwise pointwise(Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return Pointwise::gelu;
    case Activation::gelu_tanh:
      return Pointwise::gelu_tanh;
    case Activation::relu:
      return Pointwise::relu;
  }
  return Pointwise::none;
}

}  // namespace efft::cuda
