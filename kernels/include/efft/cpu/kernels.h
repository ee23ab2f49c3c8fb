// What one instruction set offers: a table of functions, filled in by each kernels/cpu/isa_*.cpp.
//
// Rows of operands and results are addressed by a start and a stride in elements; a stride may exceed the width.
#pragma once

#include <cstdint>

#include "efft/activation.h"
#include "efft/cpu/types.h"

namespace efft::cpu {

// A weight matrix [outputs, depth] cut into panels of Format::columns outputs, each panel running along the depth.
struct Panels {
  Type type;
  const void* data;
  int64_t outputs;  // of the result
  int64_t depth;
  // Two matrices of `outputs`: panels of the gate's at even places, of what it multiplies at odd ones.
  bool gated;
  // s8 only. weight = scale[output] * integer * factor[depth]; correction[output] = scale * the sum of its integers.
  const float* scales;
  const float* corrections;
  const float* factors;  // operands are multiplied by these before they are rounded
  float step;            // of operands, the same for every row; 0: each has its own
  float zero;            // the number that stands for 0 in these steps

  // How many panels make one run of columns of the result.
  int64_t panels_of_column() const { return gated ? 2 : 1; }
};

// What an unsigned 8-bit row stands for: scale * integer - shift.
struct RowScale {
  float scale, shift;
};

// What follows a product's bias.
enum class Pointwise { none, EFFT_ACTIVATIONS(EFFT_NAME) };

inline Pointwise pointwise(Activation activation) { return static_cast<Pointwise>(static_cast<int>(activation) + 1); }

// out = step(a b^T + bias) + residual; gated: out = step(a gate^T + bias of the gate) * (a b^T + bias). out may be the
// residual itself.
struct Product {
  const void* a;
  int64_t a_stride;
  const RowScale* a_scales;  // s8: one per row
  Panels b;
  const float* bias;  // gated: the gate's, then the other's
  Pointwise pointwise;
  const float* residual;  // fp32 or null
  int64_t residual_stride;
  void* out;
  int64_t out_stride;
  Type out_type;  // f32 or bf16
};

// How one operand type is multiplied.
struct Format {
  Type type;
  int rows;             // rows of one register tile; row blocks are best cut at its multiples
  int columns;          // outputs per panel
  int depth_step;       // the depth is padded with zeros to a multiple of this
  int64_t block_bytes;  // that a block of rows has of its operand at most
  // One panel, panel_bytes() long, of a row-major matrix of `from` elements: f32, bf16, f16, or s8 for the s8 format.
  void (*pack)(const void* matrix, Type from, int64_t outputs, int64_t depth, int64_t panel, void* out);
  // The tile rows [row0, row1) x panels [panel0, panel1).
  void (*multiply)(const Product&, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1, float* scratch);

  int64_t padded_depth(int64_t depth) const { return (depth + depth_step - 1) / depth_step * depth_step; }
  int64_t panels(int64_t outputs) const { return (outputs + columns - 1) / columns; }
  int64_t element_bytes() const { return type == Type::f32 ? 4 : type == Type::s8 ? 1 : 2; }
  int64_t panel_bytes(int64_t depth) const { return padded_depth(depth) * columns * element_bytes(); }
};

// One head of one sequence: query rows [0, queries) against `keys` keys; out = softmax(scale (q k^T + bias)) v.
struct Attend {
  const void* query;
  int64_t query_stride;
  const void* key;
  const void* value;
  int64_t key_stride;  // of keys and values
  void* out;
  int64_t out_stride;
  int64_t queries, keys, head_size;
  float scale;
  int64_t first_query;  // which row of its sequence the first query is
  // Score::relative: keys at a distance of at most `reach` are seen; `bias`, at [key - query], is over the scale.
  int64_t reach;
  const float* bias;
  // Score::disentangled: which row of the positions a key at [key - query] meets, falling with it, by one a step up to
  // a distance of `position_near`; the rows' keys as panels, the last row first, from that of row `last_row` on; and
  // their queries as rows. A null pointer is a product that nobody adds.
  const int32_t* row_of;
  int64_t position_near;
  const void* position_keys;
  int64_t last_row, positions;  // how many rows there are
  const void* position_queries;
  int64_t position_stride;
};

// What attention adds to its logits: nothing, a bias or a window (see cpu/score.h), products with positions.
enum class Score { full, relative, disentangled };
constexpr int kScores = 3;

// Turns pairs of elements of a head by the angles whose cosines and sines are given, for `heads` heads of a row.
struct Rotation {
  const float* cosines;
  const float* sines;
  int64_t pairs, heads, head_size;
  bool interleaved;
};

// Tables; a null pointer is one that the encoder does not have.
struct Embedding {
  const void* word;
  const void* position;
  const void* segment;
  Type type;
  int64_t width;
};

struct EmbeddingRow {
  int64_t word, position, segment;
  float factor;  // of the word's row
};

struct Norm {
  const float* gamma;  // null: no norm
  const float* beta;
  int64_t width;
  float epsilon;
  bool rms;
};

// A row in up to two forms; a null pointer is a form that nobody wants. An s8 operand needs `values` too.
struct Results {
  float* values;
  void* operand;
  Type operand_type;     // f32, bf16 or s8 (unsigned, with a RowScale)
  RowScale* scale;       // s8: where the row's scale goes
  const float* factors;  // s8: multiply the row before it is rounded
  float step;            // s8: what 1 stands for; 0: the row's own range decides
  float zero;            // s8: what stands for 0 in these steps
};

struct Kernels {
  const char* name;
  Format f32;
  Format bf16;  // where bf16 products are not native this is the f32 format
  Format s8;    // rows == 0 where there is none
  // Bytes of scratch that attend needs for `keys` keys and `positions` rows of positions.
  int64_t (*attend_scratch)(int64_t keys, int64_t head_size, int64_t positions);
  // By Score.
  void (*attend_f32[kScores])(const Attend&, void* scratch);
  void (*attend_bf16[kScores])(const Attend&, void* scratch);  // null where bf16 is not native
  // Rows [first, first + rows) of a head's positions, f32 at `stride`, as the panels that attend reads, the last row
  // first; `row` is room for their conversion, rows of head_size.
  void (*pack_positions)(const float* positions, int64_t stride, int64_t first, int64_t rows, int64_t head_size,
                         Type to, void* scratch, void* out);
  void (*rotate)(void* row, Type, const Rotation&);
  // Norm of one row of fp32.
  void (*normalize)(const float* row, const Norm&, const Results&);
  // Norm of word + position + segment.
  void (*embed)(const Embedding&, const EmbeddingRow&, const Norm&, const Results&);
  // A row of fp32 (or bf16) as an operand.
  void (*convert)(const void* row, Type from, int64_t width, const Results&);
  // step(row + bias) of any float type, in place or not.
  void (*bias_step)(const void* row, Type type, const float* bias, Pointwise, int64_t width, void* out);
  // out[i] = from[i] between any two float types.
  void (*cast)(const void* from, Type from_type, void* to, Type to_type, int64_t count);

  bool native_bf16() const { return attend_bf16[0] != nullptr; }
};

// The table of the best instruction set that this processor and operating system run. The environment variable
// EFFT_ISA (portable, avx2, avx512, avx512bf16, amx) asks for a lower one; one the processor lacks is an error.
const Kernels& kernels();

}  // namespace efft::cpu
