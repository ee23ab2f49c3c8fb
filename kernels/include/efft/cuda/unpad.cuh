// Padding removal: which rows of the flattened [batch, length] hold a token, without asking the host.
#pragma once

#include <cuda_runtime.h>

#include "efft/cuda/call.cuh"

namespace efft::cuda {

// mask int64 [batch, length]; a token is valid where it is not 0, wherever in the row that is.
// cu_seqlens int32 [batch_capacity + 1]: first packed index of each sequence; entries behind the last sequence hold
// the number of tokens, so that cu_seqlens[batch_capacity] is that number for any batch.
// rows int32 [batch * length]: index in the flattened mask of each packed token, -1 behind the last.
// slots int32 [batch * length] or nullptr: the inverse, the packed index of each position, -1 on pads.
// call is copied to device_call (nullptr: not). batch * length must fit an int.
cudaError_t unpad(const int64_t* mask, int batch, int length, int batch_capacity, int* cu_seqlens, int* rows,
                  int* slots, const Call& call, Call* device_call, cudaStream_t stream);

}  // namespace efft::cuda
