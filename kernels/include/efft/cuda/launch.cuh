// One way to launch a kernel, with clusters, and with programmatic dependent launch where the device has it.
//
// THE RULE of programmatic launch, for every kernel launched with Order::kOverlap (it may start while its predecessor
// on the stream still runs):
//   1. Before wait_for_predecessor() a kernel touches nothing that its predecessor writes, and writes nothing that the
//      predecessor reads. It may read what was written two or more kernels before it, such as weights, the number of
//      tokens, cumulative lengths.
//   2. No thread block releases its successor before it has waited, and one block at least waits before it ends, even
//      where there is nothing to do. That makes "two kernels before" safe: a kernel that runs knows that its
//      predecessor has waited, and so that its predecessor's predecessor has ended.
//   3. A kernel launched with Order::kSerial waits for everything before it; its successor may still overlap it.
// EFFT_CUDA_SERIAL=1 in the environment launches every kernel serially. Results must not change in a single bit:
// tests/gpu/test_paths.py holds every path to that.
#pragma once

#include <cuda_runtime.h>

#include <utility>

#include "efft/cuda/ptx/warp.cuh"

namespace efft::cuda {

enum class Order { kSerial, kOverlap };

// Whether EFFT_CUDA_SERIAL=1 was set when this process first launched a kernel.
bool serial_launches();

__device__ __forceinline__ void wait_for_predecessor() { ptx::griddepcontrol_wait(); }

// Allows the next kernel of the stream to start its prologue.
__device__ __forceinline__ void release_successor() { ptx::griddepcontrol_launch_dependents(); }

__device__ __forceinline__ void wait_then_release() {
  wait_for_predecessor();
  release_successor();
}

struct Launch {
  dim3 grid;
  dim3 block;
  size_t shared_bytes;  // dynamic shared memory of a block
  Order order;
  cudaStream_t stream;
  unsigned cluster = 1;  // blocks of a cluster, along x
};

// Returns the first error; a grid without blocks is no error.
template <typename... Parameters, typename... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Launch& how, Arguments&&... arguments) {
  if (how.grid.x == 0 || how.grid.y == 0 || how.grid.z == 0) return cudaSuccess;
  constexpr size_t kUnaskedSharedBytes = 48 * 1024;
  if (how.shared_bytes > kUnaskedSharedBytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(how.shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (how.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {how.cluster, 1, 1};
  }
  if (how.order == Order::kOverlap && !serial_launches()) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = how.grid;
  config.blockDim = how.block;
  config.dynamicSmemBytes = how.shared_bytes;
  config.stream = how.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...);
}

}  // namespace efft::cuda
