// Kinds of numbers and of steps, known to the host and the device. No CUDA header.
#pragma once

#include <cstddef>

#include "efft/encoder.h"

namespace efft::cuda {

enum class DataType { fp32, fp16, bf16 };

inline size_t element_size(DataType type) { return type == DataType::fp32 ? 4 : 2; }

// What is done to a product's value besides adding its bias.
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
