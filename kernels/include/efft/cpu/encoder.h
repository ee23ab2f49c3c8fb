// The whole encoder on packed tokens.
#pragma once

#include <cstdint>
#include <vector>

#include "efft/cpu/arena.h"
#include "efft/cpu/kernels.h"
#include "efft/program.h"

namespace efft::cpu {

// The inputs as the caller has them, int64: padded to [batch, length], contiguous; or packed, one sequence behind the
// other without pads.
struct Batch {
  const int64_t* ids;       // [batch, length]; packed: [tokens]
  const int64_t* segments;  // the same
  const int64_t* mask;      // the same, a token is valid where it is not 0; packed: not read
  int64_t batch, length;    // packed: length bounds that of a sequence
  // Packed: the first token's index of each sequence, then their number, [batch + 1], so many elements apart.
  const int64_t* offsets = nullptr;
  int64_t stride = 1;
  int64_t tokens = 0;

  bool packed() const { return offsets != nullptr; }
  int64_t cells() const { return packed() ? tokens : batch * length; }
};

// Tables and their numbers of rows.
struct Tables {
  Embedding rows;
  int64_t words, positions, segments;
};

// Valid tokens only, in order.
struct Tokens {
  const int32_t* cu_seqlens;  // [batch + 1]
  const int32_t* rows;        // [count]: index into the flattened [batch, length]; of a packed batch its own
  int64_t count;
  int64_t longest;
};

// Fills cu_seqlens [batch + 1] and rows (room for batch * length).
Tokens unpad(const int64_t* mask, int64_t batch, int64_t length, int32_t* cu_seqlens, int32_t* rows);

// The same of a batch of either form; rows has room for its cells. Throws std::runtime_error naming the argument when
// the offsets of a packed one do not ascend from 0 to its number of tokens by at most its length.
Tokens tokens_of(const Batch& batch, int32_t* cu_seqlens, int32_t* rows);

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
  void* out;  // [batch, length, hidden], packed: [tokens, hidden]; or [batch, hidden]
  Type out_type;
  int threads;
};

// Throws std::runtime_error as tokens_of and check_indices do, before anything is written.
void encode(const Call& call);

}  // namespace efft::cpu
