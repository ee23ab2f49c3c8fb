// The encoder on one device: from ids to hidden states, on packed tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <tuple>

#include "efft/cuda/types.cuh"
#include "efft/cuda/rows/unpad.cuh"
#include "efft/encoder.h"
#include "../linear/matmul.h"

namespace efft::cuda {

// Everything that stays the same from call to call: a captured graph holds these pointers.
struct Model {
  DataType type;
  bool tf32;
  const void* word;      // [words, E]
  const void* position;  // [positions, E]
  const void* segment;   // [segments, E]
  int words;
  int positions;
  int segments;
  const void* matrices;  // laid out by MatrixLayout
  const float* vectors;  // laid out by VectorLayout
  const void* folded;    // what small_fold made of them, or nullptr
  EncoderShape shape;
  Output output;

  auto key() const {
    return std::make_tuple(type, tf32, word, position, segment, words, positions, segments, matrices, vectors, folded,
                           shape.layers, shape.hidden, shape.embedding, shape.heads, shape.intermediate,
                           shape.activation, shape.pre_norm, shape.epsilon, shape.position_offset,
                           shape.count_positions, output);
  }
};

// The sizes that kernels are launched for. A call fits the bucket when its batch, length and valid tokens do;
// kernels read the real sizes on the device.
struct Bucket {
  int batch;
  int length;
  int tokens;
  bool tight;             // tokens is close to the number of valid tokens; else only to that of padded ones
  bool attended = false;  // enqueue_front does the first layer's attention, too

  auto key() const { return std::make_tuple(batch, length, tokens, tight, attended); }
};

// The smallest bucket for a call of `batch` sequences, `length` columns and at most `tokens` valid tokens. Sizes grow
// by an eighth (tokens) or by a half and a third (batch, length), so that the number of buckets is logarithmic.
Bucket bucket_for(int64_t batch, int64_t length, int64_t tokens, bool tight);

// Which kernels multiply. `library` computes bucket.tokens rows, the others as many as the device says there are
// tokens.
enum class Path {
  small,    // chained kernels for few tokens (sm_90a), where the matrices are folded
  hopper,   // own products with fused epilogues (sm_90a)
  library,  // cuBLASLt, any device and type
};
Path path_for(const Model& model, const Bucket& bucket);

// Whether a call of so many padded tokens runs faster if the host first waits for the number of valid ones, to take a
// tight bucket.
bool worth_counting(const Model& model, const Bucket& bucket);

// Whether the device has more to do than the embeddings while the host waits: the first layer's attention, on kernels
// that read the number of tokens themselves. padded: the bucket before they are counted.
bool attends_early(const Model& model, const Bucket& padded);

// Where the intermediate results of one call lie in one allocation.
struct Workspace {
  Workspace(void* base, const Model& model, const Bucket& bucket);

  // What enqueue_front writes. Of all that follows, only the bucket's batch and length decide where it lies, so that
  // it may be written before the number of tokens is known.
  Unpadded unpadded;
  void* embedded;      // [tokens, E]; hidden, unless the model projects
  size_t front_bytes;  // up to the end of embedded; where the bucket is attended, of context and qkv

  void* qkv;           // [tokens, 3H]
  void* context;       // [tokens, H]
  void* intermediate;  // [tokens, I], in the place of qkv and context, which are done with by then
  void* hidden;        // [tokens, H]
  void* sum;           // [tokens, H]
  void* normed;        // [tokens, H], pre-norm models; else hidden
  void* scratch;       // of the path's own kernels
  size_t bytes;        // of the whole, whatever base is

  const int* tokens(const Bucket& bucket) const { return unpadded.cu_seqlens + bucket.batch; }
};

// Enqueues padding removal, the embeddings and, where the bucket says so, the first layer's attention. A bucket that
// differs in tokens and tight alone may be used for what follows. Captures into a graph, whose only root is padding
// removal.
void enqueue_front(const Model& model, const Call& call, const Bucket& bucket, const Workspace& workspace,
                   const TokenReport& report, cudaStream_t stream);

// Enqueues everything behind it, up to the result at call.out. Captures into a graph. Throws std::runtime_error when
// a kernel or a product cannot be launched.
void enqueue_encoder(const Model& model, const Bucket& bucket, const Workspace& workspace, cudaStream_t stream);

// Calls body(T()) with the C++ type of the numbers.
template <typename Body>
void for_type(DataType type, Body&& body) {
  switch (type) {
    case DataType::fp32:
      return body(float());
    case DataType::fp16:
      return body(__half());
    case DataType::bf16:
      return body(__nv_bfloat16());
  }
}

// Throws std::runtime_error with `what` and CUDA's text unless the call succeeded.
void check(cudaError_t error, const char* what);

}  // namespace efft::cuda
