// What the engine is asked for, and which kernels answer.
#pragma once

#include <cstdint>
#include <memory>
#include <tuple>

#include "efft/cuda/device.h"
#include "efft/program.h"

namespace efft::cuda {

struct EightBits;

// Everything that stays the same from call to call: a captured graph holds these pointers.
struct Model {
  std::shared_ptr<const Lowered> encoder;
  Type type;
  bool tf32;
  const void* word;      // [words, E]
  const void* position;  // [positions, E], or nullptr: there is no such table
  const void* segment;   // [segments, E], likewise
  int words;
  int positions;
  int segments;
  const void* matrices;  // the arena of efft/weights.h
  const float* vectors;  // the same
  const void* folded;    // what fold_weights made of them, or nullptr
  Output output;
  const void* position_tables = nullptr;   // what make_position_tables made of vectors, or nullptr
  std::shared_ptr<const EightBits> eight;  // those matrices that are in eight bits, too; or nullptr

  const EncoderSpec& spec() const { return encoder->spec; }
  // The spec by its one Lowered: what keeps a key must keep the model.
  auto key() const {
    return std::make_tuple(encoder.get(), type, tf32, word, position, segment, words, positions, segments, matrices,
                           vectors, folded, output, position_tables, eight.get());
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
  bool counted = false;   // the front ran before this bucket was known: no graph of it has one

  auto key() const { return std::make_tuple(batch, length, tokens, tight, attended, counted); }
};

// The smallest bucket for a call of `batch` sequences, `length` columns and at most `tokens` valid tokens. Sizes grow
// by an eighth (tokens) or by a half and a third (batch, length), so that the number of buckets is logarithmic.
Bucket bucket_for(int64_t batch, int64_t length, int64_t tokens, bool tight);

// Which kernels multiply. `library` computes bucket.tokens rows, the others as many as the device says there are
// tokens.
enum class Path {
  small,    // own products with LayerNorm folded into the weights (sm_90a), where the matrices are
  hopper,   // own products (sm_90a)
  library,  // cuBLASLt and what is faster for single products; any device and type
};

// EFFT_CUDA_PATH in the environment forces one: small, hopper, library; eight, which is library with matrices in eight
// bits however few tokens there are; or sm_80 or sm_89, which are that without the kernels of later chips
// (DeviceInfo::current). Throws std::runtime_error with one line where the model cannot take it, and for any
// other word.
Path path_for(const DeviceInfo& device, const Model& model, const Bucket& bucket);

// Whether those matrices that are in eight bits are multiplied so: where the matrix units bind a call. Elsewhere all
// are multiplied in 16 bits.
bool in_eight_bits(const DeviceInfo& device, const Model& model, const Bucket& bucket);

// Whether a call of so many padded tokens runs faster if the host first waits for the number of valid ones, to take a
// tight bucket.
bool worth_counting(const DeviceInfo& device, const Model& model, const Bucket& bucket);

// Whether the device has more to do than the embeddings while the host waits: the first layer's attention, on kernels
// that read the number of tokens themselves. padded: the bucket before they are counted.
bool attends_early(const DeviceInfo& device, const Model& model, const Bucket& padded);

// Whether the folded weights of a model of two-byte elements are of use on the device.
bool folds(const DeviceInfo& device, const EncoderSpec& spec);

}  // namespace efft::cuda
