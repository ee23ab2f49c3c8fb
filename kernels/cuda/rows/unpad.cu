#include "efft/cuda/rows/rows.cuh"
#include "efft/cuda/rows/unpad.cuh"

namespace efft::cuda {

constexpr int kUnpadWarps = 32;

namespace {

// Tokens of one row of the mask, counted by a warp.
__device__ __forceinline__ int count_valid(const int64_t* mask, int length) {
  int count = 0;
#pragma unroll 8
  for (int s = threadIdx.x; s < length; s += kWarp) count += mask[s] != 0;
  return __reduce_add_sync(0xffffffffu, count);
}

// Writes the row's tokens from packed index `next` on.
__device__ __forceinline__ void place_valid(const int64_t* mask, int first, int length, int next, int* rows,
                                            int* slots) {
  constexpr int kAhead = 8;  // loads under way: in a long row nothing else hides their way
  const unsigned earlier_lanes = (1u << threadIdx.x) - 1;
  for (int start = 0; start < length; start += kAhead * kWarp) {
    bool valid[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int s = start + i * kWarp + threadIdx.x;
      valid[i] = s < length && mask[s] != 0;
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const int s = start + i * kWarp + threadIdx.x;
      const unsigned ballot = __ballot_sync(0xffffffffu, valid[i]);
      const int slot = next + __popc(ballot & earlier_lanes);
      if (valid[i]) rows[slot] = first + s;
      if (slots != nullptr && s < length) slots[first + s] = valid[i] ? slot : -1;
      next += __popc(ballot);
    }
  }
}

// The number is all that the host reads: nothing has to be visible to it before.
__device__ __forceinline__ void tell(const TokenReport& report, int tokens) {
  if (report.word == nullptr) return;
  *static_cast<volatile uint64_t*>(report.word) = uint64_t{report.serial} << 32 | static_cast<uint32_t>(tokens);
}

// Of a packed call there is nothing to count. What offsets that do not ascend would name stays within the call.
__device__ __forceinline__ void place_packed(const Call& call, int batch_capacity, const Unpadded& out) {
  const int lane = threadIdx.x, warp = threadIdx.y;
  const auto offset = [&call](int b) {
    const int64_t said = call.offsets[b * call.stride];
    return static_cast<int>(min(max(said, int64_t{0}), static_cast<int64_t>(call.tokens)));
  };
  for (int b = warp; b < call.batch; b += kUnpadWarps) {
    const int begin = offset(b), end = offset(b + 1);
    if (lane == 0) out.cu_seqlens[b] = begin;
    for (int t = begin + lane; t < end; t += kWarp) {
      out.rows[t] = b * call.length + min(t - begin, call.length - 1);
      if (out.slots != nullptr) out.slots[t] = t;
    }
  }
  for (int b = call.batch + warp * kWarp + lane; b <= batch_capacity; b += kUnpadWarps * kWarp) {
    out.cu_seqlens[b] = call.tokens;
  }
}

// One block: a warp counts a row, warp 0 scans 32 counts, each warp places its row's tokens. A batch of 32 x 384 is
// 98 KB of mask, so a second block would wait longer for the first than it saves.
__global__ void unpad_kernel(Call call, int batch_capacity, Unpadded out, TokenReport report) {
  release_successor();
  __shared__ int counts[kUnpadWarps];
  __shared__ int starts[kUnpadWarps + 1];
  const int lane = threadIdx.x, warp = threadIdx.y;
  const int batch = call.batch, length = call.length;
  if (lane == 0 && warp == 0) {
    starts[kUnpadWarps] = 0;
    if (out.call != nullptr) *out.call = call;
  }
  if (call.packed()) return place_packed(call, batch_capacity, out);
  for (int group = 0; group < batch; group += kUnpadWarps) {
    const int b = group + warp;
    const int64_t* row = call.mask + static_cast<int64_t>(b) * length;
    const int count = b < batch ? count_valid(row, length) : 0;
    if (lane == 0) counts[warp] = count;
    __syncthreads();
    if (warp == 0) {
      int sum = counts[lane];
#pragma unroll
      for (int offset = 1; offset < kWarp; offset *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, sum, offset);
        if (lane >= offset) sum += before;
      }
      const int base = starts[kUnpadWarps];
      __syncwarp();
      starts[lane] = base + sum - counts[lane];
      if (lane == kWarp - 1) {
        starts[kUnpadWarps] = base + sum;
        if (group + kUnpadWarps >= batch) tell(report, base + sum);
      }
    }
    __syncthreads();
    if (b < batch) {
      if (lane == 0) out.cu_seqlens[b] = starts[warp];
      place_valid(row, b * length, length, starts[warp], out.rows, out.slots);
    }
    __syncthreads();
  }
  const int tokens = starts[kUnpadWarps];
  const int thread = warp * kWarp + lane;
  for (int b = batch + thread; b <= batch_capacity; b += kUnpadWarps * kWarp) out.cu_seqlens[b] = tokens;
  for (int t = tokens + thread; t < batch * length; t += kUnpadWarps * kWarp) out.rows[t] = -1;
}

}  // namespace

cudaError_t unpad(const Call& call, int batch_capacity, const Unpadded& out, const TokenReport& report,
                  cudaStream_t stream) {
  return launch(unpad_kernel, {dim3(1), dim3(kWarp, kUnpadWarps), 0, Order::kSerial, stream}, call, batch_capacity, out,
                report);
}

cudaError_t set_call(cudaGraphExec_t graph, cudaGraphNode_t node, const Call& call, int batch_capacity,
                     const Unpadded& out) {
  const TokenReport nobody_waits;
  const void* arguments[] = {&call, &batch_capacity, &out, &nobody_waits};
  cudaKernelNodeParams parameters{};
  parameters.func = reinterpret_cast<void*>(unpad_kernel);
  parameters.gridDim = dim3(1);
  parameters.blockDim = dim3(kWarp, kUnpadWarps);
  parameters.kernelParams = const_cast<void**>(arguments);
  return cudaGraphExecKernelNodeSetParams(graph, node, &parameters);
}

}  // namespace efft::cuda
