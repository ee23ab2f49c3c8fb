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
  int64_t outputs;
  int64_t depth;
  // s8 only. weight = scale[output] * integer * factor[depth]; correction[output] = scale * the sum of its integers.
  const float* scales;
  const float* corrections;
  const float* factors;  // operands are multiplied by these before they are rounded
  float step;            // of operands, the same for every row; 0: each has its own
  float zero;            // the number that stands for 0 in these steps
};

// What an unsigned 8-bit row stands for: scale * integer - shift.
struct RowScale {
  float scale, shift;
};

// What follows a product's bias.
enum class Pointwise { none, EFFT_ACTIVATIONS(EFFT_NAME) };

inline Pointwise pointwise(Activation activation) { return static_cast<Pointwise>(static_cast<int>(activation) + 1); }

// out = step(a b^T + bias) + residual. out may be the residual itself.
struct Product {
  const void* a;
  int64_t a_stride;
  const RowScale* a_scales;  // s8: one per row
  Panels b;
  const float* bias;
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

// One head of one sequence: query rows [0, queries) against `keys` keys; out = softmax(scale q k^T) v.
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
};

struct Embedding {
  const void* word;
  const void* position;
  const void* segment;
  Type type;
  int64_t width;
};

struct Norm {
  const float* gamma;
  const float* beta;
  int64_t width;
  float epsilon;
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
  // Bytes of scratch that attend needs for `keys` keys.
  int64_t (*attend_scratch)(int64_t keys, int64_t head_size);
  void (*attend_f32)(const Attend&, void* scratch);
  void (*attend_bf16)(const Attend&, void* scratch);  // null where bf16 is not native
  // LayerNorm of one row of fp32.
  void (*normalize)(const float* row, const Norm&, const Results&);
  // LayerNorm of word + position + segment.
  void (*embed)(const Embedding&, int64_t word, int64_t position, int64_t segment, const Norm&, const Results&);
  // A row of fp32 (or bf16) as an operand.
  void (*convert)(const void* row, Type from, int64_t width, const Results&);
  // step(row + bias) of any float type, in place or not.
  void (*bias_step)(const void* row, Type type, const float* bias, Pointwise, int64_t width, void* out);
  // out[i] = from[i] between any two float types.
  void (*cast)(const void* from, Type from_type, void* to, Type to_type, int64_t count);
};

// The table of the best instruction set that this processor and operating system run. The environment variable
// EFFT_ISA (portable, avx2, avx512, avx512bf16, amx) asks for a lower one; one the processor lacks is an error.
const Kernels& kernels();

}  // namespace efft::cpu
