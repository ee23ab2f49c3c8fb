// The whole encoder on packed tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "efft/cpu/arena.h"
#include "efft/cpu/kernels.h"
#include "efft/program.h"

namespace efft::cpu {

// The inputs as the caller has them: [batch, length], int64, contiguous.
struct Batch {
  const int64_t* ids;
  const int64_t* segments;
  const int64_t* mask;
  int64_t batch, length;
};

// Tables and their numbers of rows.
struct Tables {
  Embedding rows;
  int64_t words, positions, segments;
};

// Valid tokens only, in order.
struct Tokens {
  const int32_t* cu_seqlens;  // [batch + 1]
  const int32_t* rows;        // [count]: index into the flattened [batch, length]
  int64_t count;
  int64_t longest;
};

// Fills cu_seqlens [batch + 1] and rows (room for batch * length).
Tokens unpad(const int64_t* mask, int64_t batch, int64_t length, int32_t* cu_seqlens, int32_t* rows);

// The position-table row of each token, by the spec's PositionCount.
void positions_of(const EncoderSpec& spec, const Batch& batch, const Tokens& tokens, int32_t* positions);

// What each token's row of the word table is multiplied by; empty: 1.
std::vector<float> word_factors(const EncoderSpec& spec, const Batch& batch, const Tokens& tokens);

// Throws std::runtime_error naming the argument when an id, segment or position has no row in its table.
void check_indices(const Batch& batch, const Tables& tables, const Tokens& tokens, const int32_t* positions);

struct Call {
  const Lowered& encoder;
  Batch batch;
  Tables tables;
  Prepared matrices;
  const float* vectors;
  Output output;
  void* out;  // [batch, length, hidden] or [batch, hidden]
  Type out_type;
  int threads;
};

// Throws std::runtime_error as check_indices does, before anything is written.
void encode(const Call& call);

}  // namespace efft::cpu
