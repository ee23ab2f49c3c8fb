#include "efft/cuda/linear.cuh"
#include "efft/cuda/tensor_map.cuh"

namespace efft::cuda {

namespace {

constexpr bool built_for_sm90a() {
  for (const int target : {__CUDA_ARCH_LIST__})
    if (target == 900) return true;
  return false;
}

// 9.0 only: the kernels use features of sm_90a, which no other chip has.
bool runs_sm90a() {
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 &&
         minor == 0;
}

}  // namespace

bool linear_supported(int n, int k) {
  return n % 8 == 0 && k % 8 == 0 && built_for_sm90a() && runs_sm90a() && tensor_map_encoder() != nullptr;
}

}  // namespace efft::cuda
