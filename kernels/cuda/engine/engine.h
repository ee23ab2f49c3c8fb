// The encoder on one device: from ids to hidden states, on packed tokens.
#pragma once

#include <cuda_runtime.h>

#include "efft/cuda/rows/unpad.cuh"
#include "layout.h"

namespace efft::cuda {

// Enqueues padding removal, the embeddings and, where the bucket says so, the first layer's attention. A layout of a
// bucket that differs in tokens and tight alone may be used for what follows. Captures into a graph, whose only root is
// padding removal.
void enqueue_front(const Model& model, const Call& call, const Bucket& bucket, const Layout& layout, void* memory,
                   const TokenReport& report, cudaStream_t stream);

// Enqueues everything behind it, up to the result at call.out. Captures into a graph. Throws std::runtime_error when
// a kernel or a product cannot be launched.
void enqueue_encoder(const Model& model, const Bucket& bucket, const Layout& layout, void* memory, cudaStream_t stream);

// Throws std::runtime_error with `what` and CUDA's text unless the call succeeded.
void check(cudaError_t error, const char* what);

}  // namespace efft::cuda
