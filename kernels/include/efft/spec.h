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
#include <string_view>
#include <vector>

#include "efft/activation.h"

namespace efft {

// A norm behind each block's sum (BERT), or before each block and once at the end.
#define EFFT_NORM_PLACES(each) each(post) each(pre)
enum class NormPlace { EFFT_NORM_PLACES(EFFT_NAME) };

// LayerNorm, or x / sqrt(mean(x^2) + epsilon) * gamma + beta (RMSNorm: Zhang and Sennrich 2019; its beta is zero).
#define EFFT_NORM_KINDS(each) each(layer) each(rms)
enum class NormKind { EFFT_NORM_KINDS(EFFT_NAME) };

// Which row of the position table a token takes:
//   slot  offset + its column
//   mask  offset + its rank among its row's valid tokens
//   ids   pad + its rank, from 1, among its row's ids that are not `pad`, valid or not; pad ids take row `pad`
//         (create_position_ids_from_input_ids of transformers' RoBERTa, after fairseq's make_positions)
//   none  there is no such table
#define EFFT_POSITION_COUNTS(each) each(slot) each(mask) each(ids) each(none)
enum class PositionCount { EFFT_POSITION_COUNTS(EFFT_NAME) };

// Rotary embedding of queries and keys (RoFormer: Su et al. 2021), by a token's rank among its row's valid tokens: the
// pairs that are turned are a head's elements i and i + rotary_size / 2 (halves), or 2 i and 2 i + 1 (interleaved).
#define EFFT_ROTARIES(each) each(none) each(halves) each(interleaved)
enum class Rotary { EFFT_ROTARIES(EFFT_NAME) };

// What attention adds to a logit by the distance d = rank of the query - rank of the key:
//   buckets       relative[bucket(d)][head], behind the scale (T5, bidirectional: Raffel et al. 2020), see bucket_of
//   alibi         -slopes[head] |d|, behind the scale (Press et al. 2022)
//   disentangled  before the scale, with r = clamp(bucket(d) + span, 0, 2 span - 1): q . position_keys[r] where c2p,
//                 k . position_queries[r] where p2c (DeBERTa: He et al. 2021, its v2's buckets)
#define EFFT_RELATIVES(each) each(none) each(buckets) each(alibi) each(disentangled)
enum class Relative { EFFT_RELATIVES(EFFT_NAME) };

// What the encoder hands back: every token's last hidden state in the padded shape (zeros on pads), the first
// token's only, or the mean over a sequence's valid tokens.
enum class Output { hidden, first, mean };

// Members that are 0 follow from others, as their comments say, once settle() has been called.
struct EncoderSpec {
  static constexpr int64_t kNoPad = std::numeric_limits<int64_t>::min();
  static constexpr int64_t kNoToken = -1;

  int64_t layers = 0;
  int64_t hidden = 0;        // H
  int64_t heads = 0;         // of queries
  int64_t intermediate = 0;  // I
  int64_t embedding = 0;     // E, 0: H; a projection E -> H follows the embedding norm where E != H (ELECTRA small)
  Activation activation = Activation::gelu;
  NormPlace norm = NormPlace::post;
  double epsilon = 1e-12;
  PositionCount positions = PositionCount::slot;
  int64_t offset = 0;    // slot and mask: the row of a sequence's first token
  int64_t pad = kNoPad;  // ids: the pad id, at least -1
  int64_t head = 0;      // size of a head, even and at most 128; 0: H / heads
  int64_t kv_heads = 0;  // of keys and values, each shared by heads / kv_heads queries (GQA); 0: heads
  NormKind normalise = NormKind::layer;
  bool first_norm = true;      // pre: whether layer 0 normalises before attention
  bool embedding_norm = true;  // whether a norm follows the embeddings' sum
  bool types = true;           // whether there is a table of segments
  bool gated = false;          // activation(first I outputs) * (last I outputs) of a matrix of 2 I outputs
  Rotary rotary = Rotary::none;
  int64_t rotary_size = 0;  // elements of a head that are turned, from its first on; 0: head
  int64_t window = 0;       // local layers: a query sees keys at a distance of at most this
  std::string local;        // a 0 or 1 for each layer, 1: local; empty: none is
  double scale = 0;         // of q . k; 0: 1 / sqrt(head), disentangled: 1 / sqrt(head (1 + c2p + p2c))
  Relative relative = Relative::none;
  int64_t buckets = 0;   // buckets: of both directions together; disentangled: of one direction, 0: d is its own bucket
  int64_t distance = 0;  // from which on all distances share a bucket
  bool c2p = false, p2c = false;     // disentangled: content to position, position to content
  std::vector<int64_t> layer_of;     // whose weights a layer uses (ALBERT), numbered by first use; empty: its own
  int64_t dropout_token = kNoToken;  // this id embeds as zeros, the others times 0.88 / (1 - its share) (ESM)

  bool projects() const { return embedding != hidden; }
  int64_t head_size() const { return head; }
  int64_t context() const { return heads * head; }      // width of attention's result
  int64_t kv_width() const { return kv_heads * head; }  // of keys, and of values
  // Rows of a layer's table of positions for one direction: disentangled only.
  int64_t span() const { return buckets > 0 ? buckets : distance; }
  bool is_local(int64_t layer) const { return !local.empty() && local[static_cast<size_t>(layer)] == '1'; }
  int64_t weights_of(int64_t layer) const { return layer_of.empty() ? layer : layer_of[static_cast<size_t>(layer)]; }
  int64_t distinct_layers() const;
  // The first row of the position table that is not a pad's.
  int64_t first_position() const { return positions == PositionCount::ids ? pad + 1 : offset; }
};

bool operator==(const EncoderSpec& a, const EncoderSpec& b);
inline bool operator!=(const EncoderSpec& a, const EncoderSpec& b) { return !(a == b); }

// Fills in what follows from other members, and drops what says no more than the default.
void settle(EncoderSpec& spec);

// Throws std::runtime_error with one line that names the key: unknown, given twice, missing, no such value, or out
// of range (see check).
EncoderSpec parse(const std::string& text);

// The canonical text; parse(text(s)) == s.
std::string text(const EncoderSpec& spec);

// Throws std::runtime_error with one line that names the first size or option that no engine can run. Bounds keep
// every offset and product of sizes far within 63 bits.
void check(const EncoderSpec& spec);

// Throws std::runtime_error with one line naming the first key that is not among `known` and whose value is not the
// default: what an engine does not run yet.
void check_known(const EncoderSpec& spec, const std::vector<std::string_view>& known, const std::string& engine);

// The bucket of a distance: relative=buckets [0, buckets), disentangled (-span, span) before it is clamped. Logarithms
// are taken in fp32, as transformers takes them: a distance at a bucket's edge falls where the checkpoint's falls.
int64_t bucket_of(const EncoderSpec& spec, int64_t distance);

// Throw std::runtime_error with one line that says which values there are.
Activation activation_of(const std::string& name);
Output output_of(const std::string& name);

}  // namespace efft
