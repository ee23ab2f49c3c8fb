// What an encoder computes: its sizes and options, and the canonical text that stands for them.
//
// The text is the operator's argument, the key under which plans and graphs are kept, and a part of archive.json:
//
//   encoder/1 layers=12 hidden=768 heads=12 intermediate=3072 activation=gelu norm=post epsilon=1e-12 positions=slot
//
// with the version first, keys in the order of the table in core/spec.cpp, and what is default left out. An attribute
// is a member here and a line in that table; nothing else reads or writes the text.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "efft/activation.h"

namespace efft {

// LayerNorm behind each block's sum (BERT), or before each block and once at the end.
#define EFFT_NORM_PLACES(each) each(post) each(pre)
enum class NormPlace { EFFT_NORM_PLACES(EFFT_NAME) };

// Which row of the position table a token takes:
//   slot  offset + its column
//   mask  offset + its rank among its row's valid tokens
//   ids   pad + its rank, from 1, among its row's ids that are not `pad`, valid or not; pad ids take row `pad`
//         (create_position_ids_from_input_ids of transformers' RoBERTa, after fairseq's make_positions)
#define EFFT_POSITION_COUNTS(each) each(slot) each(mask) each(ids)
enum class PositionCount { EFFT_POSITION_COUNTS(EFFT_NAME) };

// What the encoder hands back: every token's last hidden state in the padded shape (zeros on pads), the first
// token's only, or the mean over a sequence's valid tokens.
enum class Output { hidden, first, mean };

struct EncoderSpec {
  static constexpr int64_t kNoPad = std::numeric_limits<int64_t>::min();

  int64_t layers = 0;
  int64_t hidden = 0;        // H
  int64_t heads = 0;         // head size = H / heads, even and at most 128
  int64_t intermediate = 0;  // I
  int64_t embedding = 0;     // E; a projection E -> H follows the embedding norm where E != H (ELECTRA small)
  Activation activation = Activation::gelu;
  NormPlace norm = NormPlace::post;
  double epsilon = 1e-12;
  PositionCount positions = PositionCount::slot;
  int64_t offset = 0;    // slot and mask: the row of a sequence's first token
  int64_t pad = kNoPad;  // ids: the pad id, at least -1

  bool projects() const { return embedding != hidden; }
  int64_t head_size() const { return hidden / heads; }
  // The first row of the position table that is not a pad's.
  int64_t first_position() const { return positions == PositionCount::ids ? pad + 1 : offset; }
};

bool operator==(const EncoderSpec& a, const EncoderSpec& b);
inline bool operator!=(const EncoderSpec& a, const EncoderSpec& b) { return !(a == b); }

// Throws std::runtime_error with one line that names the key: unknown, given twice, missing, no such value, or out
// of range (see check).
EncoderSpec parse(const std::string& text);

// The canonical text; parse(text(s)) == s.
std::string text(const EncoderSpec& spec);

// Throws std::runtime_error with one line that names the first size or option that no engine can run. Bounds keep
// every offset and product of sizes far within 63 bits.
void check(const EncoderSpec& spec);

// Throw std::runtime_error with one line that says which values there are.
Activation activation_of(const std::string& name);
Output output_of(const std::string& name);

}  // namespace efft
