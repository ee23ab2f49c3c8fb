// All layers of an encoder for few tokens on sm_90a: five kernels a layer, each starting while its predecessor ends
// (programmatic dependent launch) and fetching its first weights meanwhile. LayerNorm costs no kernel of its own: gamma
// and beta are folded into the weights that follow it, once, when a model is loaded.
//
// Correct for any number of tokens; meant for up to about 512, where launches and latency, not arithmetic, bound a
// layer. Declarations only; kernels/cuda/small.cu holds the definitions, for __half and __nv_bfloat16.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "efft/encoder.h"

namespace efft::cuda {

// Post-norm encoders whose hidden and intermediate sizes are multiples of 64 and whose head size is 32 or 64, on a
// device that runs sm_90a code.
bool small_supported(const EncoderShape& shape);

// What small_fold makes of a model, in bytes: its up and QKV weights times gamma, and the vectors that go with them.
size_t small_folded_bytes(const EncoderShape& shape);

// Fills `folded` (small_folded_bytes, aligned to 256 bytes) from the arenas of MatrixLayout and VectorLayout, on
// `stream`.
template <typename T>
cudaError_t small_fold(const EncoderShape& shape, const T* matrices, const float* vectors, void* folded,
                       cudaStream_t stream);

// Scratch memory for `capacity` tokens, in bytes; its contents do not matter.
size_t small_workspace_bytes(const EncoderShape& shape, int capacity);

// hidden      [capacity, H], the normalised embeddings; not written
// context     [capacity, H], the first layer's attention, or nullptr: to be done here
// matrices    the arena of MatrixLayout; vectors the arena of VectorLayout
// folded      from small_fold with the same arenas
// tokens      their number on the device, written no later than two kernels before this call on the stream, where the
//             kernel in between waits for its predecessor before it releases its successor
// cu_seqlens  [batch + 1] on the device
// max_length  no sequence is longer
// out         [capacity, H]: the last block's output before its LayerNorm, which is the caller's to do; rows from
//             *tokens on are not written
// workspace   small_workspace_bytes, aligned to 256 bytes
//
// May be captured into a graph: no allocation, no synchronisation. Deterministic. Returns the first launch's error.
template <typename T>
cudaError_t encoder_layers_small(const EncoderShape& shape, const T* hidden, const T* context, const T* matrices,
                                 const float* vectors, const void* folded, const int* tokens, const int* cu_seqlens,
                                 int batch, int max_length, int capacity, T* out, void* workspace, cudaStream_t stream);

}  // namespace efft::cuda
