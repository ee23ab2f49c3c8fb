// The search behind Matmul::tune.
#include <algorithm>
#include <limits>
#include <memory>
#include <stdexcept>
#include <string>

#include "cublaslt.h"
#include "plan.h"

namespace efft::cuda {
namespace {

constexpr int kTimings = 5;  // the median of these is an algorithm's time
// Weights of an encoder exceed any L2 cache: a product that finds them there would be timed too well.
constexpr size_t kColdBytes = size_t{192} << 20;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("efft: tuning failed: ") + cudaGetErrorString(error));
}

struct DeviceMemory {
  explicit DeviceMemory(size_t bytes) { check(cudaMalloc(&pointer, bytes)); }
  ~DeviceMemory() { cudaFree(pointer); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  void* pointer = nullptr;
};

struct Event {
  Event() { check(cudaEventCreate(&event)); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  cudaEvent_t event = nullptr;
};

// Bit patterns of small normal numbers in each of the three types (zeros would run faster than real data).
__global__ void fill_kernel(uint16_t* values, size_t count, bool fp32, bool fp16) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t hash = static_cast<uint32_t>(i) * 2654435761u;
    const uint16_t exponent = fp16 ? 0x3000 : 0x3e00;  // an eighth, in fp16 and in the upper half of fp32 or bf16
    values[i] = (fp32 && i % 2 == 0) ? hash >> 16 : ((hash >> 16) & (fp16 ? 0x83ff : 0x807f)) | exponent;
  }
}

// Median milliseconds of what `enqueue` puts on the stream, replayed as a graph.
template <typename Enqueue>
float time_as_graph(cudaStream_t stream, const Enqueue& enqueue) {
  cudaGraph_t captured = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  enqueue();
  check(cudaStreamEndCapture(stream, &captured));
  cudaGraphExec_t graph = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&graph, captured, 0);
  cudaGraphDestroy(captured);
  check(error);
  const std::unique_ptr<CUgraphExec_st, decltype(&cudaGraphExecDestroy)> owner(graph, cudaGraphExecDestroy);
  Event start, stop;
  check(cudaGraphLaunch(graph, stream));
  std::array<float, kTimings> times;
  for (auto& time : times) {
    check(cudaEventRecord(start.event, stream));
    check(cudaGraphLaunch(graph, stream));
    check(cudaEventRecord(stop.event, stream));
    check(cudaEventSynchronize(stop.event));
    check(cudaEventElapsedTime(&time, start.event, stop.event));
  }
  std::nth_element(times.begin(), times.begin() + kTimings / 2, times.end());
  return times[kTimings / 2];
}

}  // namespace

Algorithm Matmul::tune(const Product& product, int candidates) {
  const size_t size = bytes_of(product.type);
  const size_t weights = size * product.outputs * product.inputs;
  const size_t copies = std::max<size_t>(1, std::min<size_t>(64, kColdBytes / std::max<size_t>(weights, 1)));
  const size_t inputs = size * product.rows * product.inputs, outputs = size * product.rows * product.outputs;
  // Regions start on 256 bytes, as arenas and workspaces do.
  const auto padded = [](size_t bytes) { return (bytes + 255) / 256 * 256; };
  DeviceMemory w(padded(weights) * copies), x(padded(inputs)), y(padded(outputs)), workspace(kMatmulWorkspaceBytes);
  // In an encoder, what does not widen its input closes a block: the residual is its addend.
  const bool adds = product.outputs <= product.inputs;
  DeviceMemory addend(padded(adds ? outputs : 0));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const std::unique_ptr<CUstream_st, decltype(&cudaStreamDestroy)> stream_owner(stream, cudaStreamDestroy);
  const bool fp32 = product.type == Type::f32, fp16 = product.type == Type::f16;
  fill_kernel<<<1024, 256, 0, stream>>>(static_cast<uint16_t*>(w.pointer), padded(weights) * copies / 2, fp32, fp16);
  fill_kernel<<<1024, 256, 0, stream>>>(static_cast<uint16_t*>(x.pointer), padded(inputs) / 2, fp32, fp16);
  if (adds) {
    fill_kernel<<<1024, 256, 0, stream>>>(static_cast<uint16_t*>(addend.pointer), padded(outputs) / 2, fp32, fp16);
  }
  check(cudaGetLastError());

  Plan plan(product, 256);
  Algorithm best{{}, std::numeric_limits<int64_t>::max()};
  for (const auto& algorithm : plan.candidates(handle_, candidates)) {
    if (!plan.adopt(handle_, algorithm)) continue;
    // As a graph: what a launch costs the host would hide what a small product costs the device.
    const float milliseconds = time_as_graph(stream, [&] {
      for (size_t copy = 0; copy < copies; ++copy) {
        const auto* weight = static_cast<char*>(w.pointer) + padded(weights) * copy;
        plan.run(handle_, x.pointer, weight, adds ? addend.pointer : nullptr, y.pointer, workspace.pointer, stream);
      }
    });
    const auto nanoseconds = static_cast<int64_t>(milliseconds * 1e6f / copies);
    if (nanoseconds < best.nanoseconds) best = {settings_of(algorithm), nanoseconds};
  }
  if (!use(product, best)) throw std::runtime_error("efft: cuBLASLt does not take its own algorithm back");
  return best;
}

}  // namespace efft::cuda
