// What depends on positions alone: made once for a call, or once for a layer, before attention reads it.
#pragma once

#include <cstdint>
#include <vector>

#include "efft/cpu/encoder.h"
#include "efft/cpu/parallel.h"

namespace efft::cpu {

// So many numbers as whole vectors of any instruction set.
inline int64_t position_columns(int64_t rows) { return (rows + 15) / 16 * 16; }

class PositionTables {
 public:
  // At most so many phases, of fill() and pack() together, for a call with `layers` attend steps.
  static int64_t phases(int64_t layers) { return 2 + layers; }

  PositionTables(const Call& call, const Tokens& tokens);

  // Room that place() is given.
  int64_t bytes() const { return bytes_; }
  void place(char* memory);

  // Angles of rotation and biases by distance, by all members of a team.
  void fill(Member& member) const;
  // A disentangled layer's positions, as attention multiplies by them.
  void pack(const Attention& attention, Member& member, char* scratch) const;

  // Of a token's heads, by its rank.
  Rotation rotation(const Attention& attention, int64_t rank, int64_t heads) const;
  int64_t rank(int64_t token) const { return ranks_[token]; }
  // Adds what the score of a layer's attention needs, for one head.
  void complete(Attend& a, const Attention& attention, int64_t head) const;

 private:
  static constexpr int64_t kRotaryKinds = 2;  // global and local layers

  void fill_angles(int64_t kind, int64_t rank) const;
  void fill_bias(int64_t head) const;
  const float* vector(int slot) const;

  const Call& call_;
  const EncoderSpec& spec_;
  const Type type_;  // of queries and keys
  const int64_t longest_;
  std::vector<int32_t> ranks_, buckets_;  // buckets_: by key - query + longest - 1
  int64_t lowest_ = 0, rows_ = 0;         // of the positions that any distance meets
  int rotary_[kRotaryKinds] = {-1, -1};   // slots
  int relative_ = -1;
  int64_t angles_bytes_ = 0, bias_stride_ = 0, head_bytes_ = 0;
  int64_t angles_at_ = 0, bias_at_ = 0, keys_at_ = 0, queries_at_ = 0, bytes_ = 0;
  char* memory_ = nullptr;
};

}  // namespace efft::cpu
