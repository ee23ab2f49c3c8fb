// Padding removal: which rows of the flattened [batch, length] hold a token, without asking the host.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "efft/cuda/call.cuh"

namespace efft::cuda {

// A word of host memory that the device can write, for a host that waits for the number of tokens. The device stores
// `serial` in the upper half and the number in the lower one, at once: what an earlier call left there has another
// serial.
struct TokenReport {
  uint64_t* word = nullptr;  // nullptr: nobody waits
  uint32_t serial = 0;
};

// Results of unpad. cu_seqlens int32 [batch_capacity + 1]: first packed index of each sequence; entries behind the last
// sequence hold the number of tokens, so that cu_seqlens[batch_capacity] is that number for any batch.
// rows int32 [batch * length]: index in the flattened mask of each packed token, -1 behind the last. Of a packed call
// what it would be if the call were padded to its length; nothing behind the last.
// slots int32 [batch * length] or nullptr: the inverse, the packed index of each position, -1 on pads. Of a packed call
// [tokens], each its own.
// call: a copy of the call (nullptr: not wanted).
struct Unpadded {
  int* cu_seqlens;
  int* rows;
  int* slots;
  Call* call;
};

// batch * length must fit an int. A packed call's offsets must ascend from 0 to its tokens by at most its length. Waits
// for all that precedes it on the stream; a successor launched with Order::kOverlap starts at once.
cudaError_t unpad(const Call& call, int batch_capacity, const Unpadded& out, const TokenReport& report,
                  cudaStream_t stream);

// Gives the later launches of `graph` another call. node: what unpad became when it was captured for that graph.
cudaError_t set_call(cudaGraphExec_t graph, cudaGraphNode_t node, const Call& call, int batch_capacity,
                     const Unpadded& out);

}  // namespace efft::cuda
