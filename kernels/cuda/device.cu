#include <cuda_runtime.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "efft/cuda/device.h"
#include "efft/cuda/launch.cuh"
#include "efft/cuda/linear/tensor_map.cuh"

namespace efft::cuda {
namespace {

constexpr bool built_for_sm90a() {
  for (const int target : {__CUDA_ARCH_LIST__})
    if (target == 900) return true;
  return false;
}

int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  const cudaError_t error = cudaDeviceGetAttribute(&value, name, device);
  if (error == cudaSuccess) return value;
  throw std::runtime_error(std::string("efft: asking for the device failed: ") + cudaGetErrorString(error));
}

// EFFT_CUDA_PATH=sm_80 or sm_89: as on a chip that has but the portable kernels. 0: not forced.
int forced_capability() {
  const char* const text = std::getenv("EFFT_CUDA_PATH");
  if (text == nullptr) return 0;
  return std::strcmp(text, "sm_80") == 0 ? 80 : std::strcmp(text, "sm_89") == 0 ? 89 : 0;
}

DeviceInfo read(int device) {
  const int forced = forced_capability();
  DeviceInfo info;
  info.index = device;
  info.major = attribute(cudaDevAttrComputeCapabilityMajor, device);
  info.minor = attribute(cudaDevAttrComputeCapabilityMinor, device);
  info.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
  info.shared_bytes = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  // 9.0 only: sm_90a's features are no other chip's.
  info.hopper =
      built_for_sm90a() && info.major == 9 && info.minor == 0 && tensor_map_encoder() != nullptr && forced == 0;
  const int capability = forced != 0 ? forced : 10 * info.major + info.minor;
  info.integers = capability >= 80;
  info.e4m3 = capability >= 89;
  return info;
}

}  // namespace

const DeviceInfo& DeviceInfo::current() {
  static std::mutex mutex;
  static auto* known = new std::map<int, DeviceInfo>;
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) throw std::runtime_error(std::string("efft: no CUDA device: ") + cudaGetErrorString(error));
  const std::lock_guard lock(mutex);
  const auto found = known->find(device);
  return found != known->end() ? found->second : known->emplace(device, read(device)).first->second;
}

bool serial_launches() {
  static const bool serial = [] {
    const char* const text = std::getenv("EFFT_CUDA_SERIAL");
    return text != nullptr && std::strcmp(text, "1") == 0;
  }();
  return serial;
}

}  // namespace efft::cuda
