#include "efft/cuda/rows.cuh"
#include "efft/cuda/unpad.cuh"

namespace efft::cuda {

constexpr int kUnpadWarps = 32;

namespace {

// Tokens of one row of the mask, counted by a warp.
__device__ __forceinline__ int count_valid(const int64_t* mask, int length) {
  int count = 0;
  for (int s = threadIdx.x; s < length; s += kWarp) count += mask[s] != 0;
  return __reduce_add_sync(0xffffffffu, count);
}

// Writes the row's tokens from packed index `next` on.
__device__ __forceinline__ void place_valid(const int64_t* mask, int first, int length, int next, int* rows,
                                            int* slots) {
  const unsigned earlier_lanes = (1u << threadIdx.x) - 1;
  for (int start = 0; start < length; start += kWarp) {
    const int s = start + threadIdx.x;
    const bool valid = s < length && mask[s] != 0;
    const unsigned ballot = __ballot_sync(0xffffffffu, valid);
    const int slot = next + __popc(ballot & earlier_lanes);
    if (valid) rows[slot] = first + s;
    if (slots != nullptr && s < length) slots[first + s] = valid ? slot : -1;
    next += __popc(ballot);
  }
}

// One block: a warp counts a row, warp 0 scans 32 counts, each warp places its row's tokens. A batch of 32 x 384 is
// 98 KB of mask, so a second block would wait longer for the first than it saves.
__global__ void unpad_kernel(const int64_t* mask, int batch, int length, int batch_capacity, int* cu_seqlens, int* rows,
                             int* slots, Call call, Call* device_call) {
  __shared__ int counts[kUnpadWarps];
  __shared__ int starts[kUnpadWarps + 1];
  const int lane = threadIdx.x, warp = threadIdx.y;
  if (lane == 0 && warp == 0) {
    starts[kUnpadWarps] = 0;
    if (device_call != nullptr) *device_call = call;
  }
  for (int group = 0; group < batch; group += kUnpadWarps) {
    const int b = group + warp;
    const int64_t* row = mask + static_cast<int64_t>(b) * length;
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
      if (lane == kWarp - 1) starts[kUnpadWarps] = base + sum;
    }
    __syncthreads();
    if (b < batch) {
      if (lane == 0) cu_seqlens[b] = starts[warp];
      place_valid(row, b * length, length, starts[warp], rows, slots);
    }
    __syncthreads();
  }
  const int tokens = starts[kUnpadWarps];
  const int thread = warp * kWarp + lane;
  for (int b = batch + thread; b <= batch_capacity; b += kUnpadWarps * kWarp) cu_seqlens[b] = tokens;
  for (int t = tokens + thread; t < batch * length; t += kUnpadWarps * kWarp) rows[t] = -1;
}

}  // namespace

cudaError_t unpad(const int64_t* mask, int batch, int length, int batch_capacity, int* cu_seqlens, int* rows,
                  int* slots, const Call& call, Call* device_call, cudaStream_t stream) {
  return launch(unpad_kernel, dim3(1), dim3(kWarp, kUnpadWarps), 0, Order::kSerial, stream, mask, batch, length,
                batch_capacity, cu_seqlens, rows, slots, call, device_call);
}

}  // namespace efft::cuda
