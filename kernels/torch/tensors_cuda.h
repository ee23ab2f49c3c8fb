// Between torch's stable tensors and the engine's raw pointers: checks, allocation, the current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/engine/engine.h"
#include "efft/encoder.h"

namespace efft::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Throws std::runtime_error "efft::OPERATOR: MESSAGE" unless the condition holds.
inline void require(bool condition, const char* name, const std::string& message) {
  if (!condition) throw std::runtime_error(std::string("efft::") + name + ": " + message);
}

// A tensor on the device as a kernel wants it: contiguous, of the type and the sizes (-1: any) given.
inline Tensor checked(const Tensor& tensor, ScalarType type, std::initializer_list<int64_t> sizes, const char* name,
                      const char* argument) {
  const std::string text(argument);
  require(tensor.is_cuda(), name, text + " is not on a CUDA device");
  require(tensor.scalar_type() == type, name, text + " has the wrong type");
  require(tensor.dim() == static_cast<int64_t>(sizes.size()), name,
          text + " has " + std::to_string(tensor.dim()) + " dimensions instead of " + std::to_string(sizes.size()));
  int64_t dimension = 0;
  for (const int64_t size : sizes) {
    require(size < 0 || tensor.size(dimension) == size, name,
            text + " has size " + std::to_string(tensor.size(dimension)) + " instead of " + std::to_string(size) +
                " in dimension " + std::to_string(dimension));
    ++dimension;
  }
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline DataType data_type(const Tensor& tensor, const char* name, const char* argument) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DataType::fp32;
    case ScalarType::Half:
      return DataType::fp16;
    case ScalarType::BFloat16:
      return DataType::bf16;
    default:
      require(false, name, std::string(argument) + " must be float32, float16 or bfloat16");
      return {};
  }
}

inline Activation parse_activation(const std::string& text, const char* name) {
  if (text == "gelu") return Activation::gelu;
  if (text == "gelu_tanh") return Activation::gelu_tanh;
  require(text == "relu", name, "activation must be gelu, gelu_tanh or relu, not " + text);
  return Activation::relu;
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Says "out of memory" where that is the reason: through the stable ABI torch's own words do not arrive.
inline Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  try {
    return torch::stable::new_empty(like, sizes, type);
  } catch (const std::exception&) {
    size_t free = 0, total = 0;
    if (cudaMemGetInfo(&free, &total) != cudaSuccess) throw;  // the device itself is in trouble
    int64_t elements = 1;
    for (const int64_t size : sizes) elements *= size;
    throw std::runtime_error("efft: CUDA out of memory: no room for " + std::to_string(elements) + " elements");
  }
}

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace efft::cuda
