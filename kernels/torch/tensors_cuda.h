// Between torch's stable tensors and the CUDA engine's raw pointers: allocation, the current stream.
//
// What is used of torch's headers must be in every release from 2.10 on: tests/unit/test_torch_headers.py compiles the
// bindings against the oldest's and the newest's.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "../cuda/engine/engine.h"
#include "checks.h"
#include "efft/cuda/for_type.cuh"

namespace efft::cuda {

using torch::stable::accelerator::DeviceGuard;

// Contiguous, as kernels want it.
inline Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline void check_cuda(const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_cuda(), name, ": not on a CUDA device");
}

// Of a tensor that check_float_type lets pass.
inline Type type_of(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::BFloat16) return Type::bf16;
  return tensor.scalar_type() == ScalarType::Half ? Type::f16 : Type::f32;
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

// A call of torch's C shims, whose own macro for this has another name from release to release.
inline void check_shim(int32_t error, const char* what) {
  if (error != 0) throw std::runtime_error(std::string("efft: ") + what + " failed");
}

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  check_shim(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream), "asking for the stream");
  return static_cast<cudaStream_t>(stream);
}

}  // namespace efft::cuda
