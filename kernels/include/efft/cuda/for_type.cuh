// From a type of numbers that is known at run time to the C++ type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <stdexcept>
#include <utility>

#include "efft/types.h"

namespace efft::cuda {

// Calls body(T()). Throws std::runtime_error for a type that no CUDA kernel computes in.
template <typename Body>
auto for_type(Type type, Body&& body) {
  switch (type) {
    case Type::f32:
      return body(float());
    case Type::f16:
      return body(__half());
    case Type::bf16:
      return body(__nv_bfloat16());
    default:
      throw std::runtime_error("efft: weights of this type run on the CPU only");
  }
}

}  // namespace efft::cuda
