// The encoder's activations, all in the calling thread's workspace.
#pragma once

#include <cstdint>

#include "efft/cpu/arena.h"
#include "efft/cpu/encoder.h"
#include "efft/cpu/workspace.h"

namespace efft::cpu {

inline int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::s8 ? 1 : 2; }

// Whole cache lines, and an odd number of them: rows a power of two apart would share one set of the first-level cache.
inline int64_t padded_stride(int64_t width, Type type) {
  int64_t lines = (width * bytes_of(type) + 63) / 64;
  lines += lines % 2 == 0;
  return lines * 64 / bytes_of(type);
}

// Rows of one type.
struct Rows {
  char* data;
  int64_t stride;  // elements
  Type type;
  RowScale* scales;  // s8: one per row

  char* at(int64_t row, int64_t column) const { return data + (row * stride + column) * bytes_of(type); }
  float* floats(int64_t row) const { return reinterpret_cast<float*>(at(row, 0)); }
  int64_t row_bytes() const { return stride * bytes_of(type); }
};

// Memory for rows whose type depends on the product that reads them.
struct OperandMemory {
  char* data;
  int64_t width;
  RowScale* scales;

  Rows as(Type type) const { return {data, padded_stride(width, type), type, scales}; }
};

// What travels from layer to layer: the residual stream in fp32, and the same (or its LayerNorm) as an operand.
struct Stream {
  Rows hidden;
  OperandMemory operand;
  int64_t count;
};

class Buffers {
 public:
  // Carves all arrays for `count` tokens of `call`, in sequences of at most `longest`, out of `workspace`.
  Buffers(const Call& call, int64_t count, int64_t longest, Workspace& workspace);

  Stream all, firsts;
  Rows embedded;  // before the projection, where there is one
  OperandMemory embedded_operand;
  Rows qkv, context, inner;  // of the arena's activation type
  OperandMemory quantised_inner;

  char* scratch(int thread) const { return scratch_ + thread * scratch_bytes_; }

 private:
  char* scratch_;
  int64_t scratch_bytes_;
};

}  // namespace efft::cpu
