// The encoder as a list of steps over values, which both engines walk: on the CPU at every call, on a GPU when they
// launch or capture, never on a graph's replay.
//
// A value is written once, by one step, for every packed token (or every sequence). Which memory it gets follows from
// how long it lives: see place().
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "efft/weights.h"

namespace efft {

enum class Op {
  embed,   // output = norm(word + position + segment), each where the encoder has it
  linear,  // output = activation(input weight^T + bias) + residual; gated: see EncoderSpec::gated
  attend,  // output = softmax(scale q k^T + bias) v of input = [q k v], as `attention` says
  norm,    // output = norm(input)
  gather,  // output = the first row of each sequence of input; zeros stand for that of an empty one
  pool,    // the call's result, as its Output says, of input
};

enum class Rows {
  tokens,
  sequences,
  widest,  // room for either number: queries of sequences beside keys and values of tokens
};

struct Value {
  int64_t width;
  Rows rows = Rows::tokens;
  int made = -1;         // the step that writes it
  int last_read = -1;    // the last step that reads it
  bool moments = false;  // after fold_norms: a reader normalises it, so whoever writes it tells its rows' moments
};

// Slots of a LayerNorm's vectors; -1: none.
struct NormSlots {
  int gamma = -1, beta = -1;
  bool present() const { return gamma >= 0; }
};

// What an attend step does beside the products; slots, -1: none.
struct Attention {
  int rotary = -1;    // inverse frequencies: q and k are turned first. An engine may do so in its input, which nobody
                      // else reads
  int relative = -1;  // relative or slopes
  int position_keys = -1, position_queries = -1;
  bool local = false;  // within the spec's window
};

struct Step {
  Op op;
  int layer = -1;     // -1: outside the layers
  int input = -1;     // value
  int output = -1;    // value
  int residual = -1;  // value, linear only
  int queries = -1;   // value, linear of qkv after first_rows only: its rows make the queries, those of input the rest
  int weight = -1;    // slot of the matrix, linear only
  int bias = -1;      // slot, linear only
  bool activates = false;  // linear: the spec's activation follows the bias
  bool gated = false;      // linear that activates: its first half of outputs is the gate, its result half as wide
  Attention attention;
  NormSlots norm;                       // norm, and embed where a norm follows the sum
  NormSlots input_norm, residual_norm;  // linear, after fold_norms: LayerNorms that its operands still lack
};

struct Program {
  std::vector<Value> values;
  std::vector<Step> steps;
};

// The encoder's one lowering, post-norm or pre-norm; the last step is pool.
Program lower(const EncoderSpec& spec, const std::vector<Slot>& slots);

// Norms whose results only products read move into those products, as input_norm and residual_norm. The norm behind
// the embeddings stays in embed, and the last one before pool.
Program fold_norms(const Program& program);

// For Output::first: what follows the last attention is computed for the first row of each sequence only, as are the
// last layer's queries.
Program first_rows(const Program& program);

// Which values may take over memory that their own step reads last.
struct Sharing {
  bool residual = false;  // a product's result that of its residual
  bool norm = false;      // a LayerNorm's result that of its input
};

struct Placement {
  std::vector<int64_t> at;  // of each value, in bytes, a multiple of `alignment`
  int64_t bytes;
};

// First fit by liveness. bytes(value) is what a value needs; 0 asks for nothing. Where a value lies depends only on the
// sizes of those made before it, unless they share memory.
Placement place(const Program& program, const std::function<int64_t(int value)>& bytes, const Sharing& sharing,
                int64_t alignment);

// A line per step, for tests and people: "linear 0.qkv v0 -> v1".
std::string text(const Program& program, const std::vector<Slot>& slots);

// All that follows from a spec.
struct Lowered {
  EncoderSpec spec;
  std::string text;  // canonical
  std::vector<Slot> slots;
  Program program;
  Program first_rows;
  Program folded;
};

// Made once and kept for the 64 specs used last; threads may call at once. Throw as parse and check do.
std::shared_ptr<const Lowered> lowered(const std::string& text);
std::shared_ptr<const Lowered> lowered(const EncoderSpec& spec);

}  // namespace efft
