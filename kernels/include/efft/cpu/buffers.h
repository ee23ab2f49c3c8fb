// Where the values of a program lie, and in which forms, all in the calling thread's workspace.
#pragma once

#include <cstdint>
#include <vector>

#include "efft/cpu/encoder.h"
#include "efft/cpu/workspace.h"

namespace efft::cpu {

// Whole cache lines, and an odd number of them: rows a power of two apart would share one set of the first-level cache.
inline int64_t padded_stride(int64_t width, Type type) {
  int64_t lines = (width * bytes_of(type) + 63) / 64;
  lines += lines % 2 == 0;
  return lines * 64 / bytes_of(type);
}

// Rows of one type; no data: the form does not exist.
struct RowBlock {
  char* data = nullptr;
  int64_t stride = 0;  // elements
  int64_t width = 0;
  Type type = Type::f32;
  RowScale* scales = nullptr;  // s8: one per row

  explicit operator bool() const { return data != nullptr; }
  char* at(int64_t row, int64_t column) const { return data + (row * stride + column) * bytes_of(type); }
  float* floats(int64_t row) const { return reinterpret_cast<float*>(at(row, 0)); }
  int64_t row_bytes() const { return stride * bytes_of(type); }
  // bf16 products run over an even depth: what lies behind an odd row has to be finite, since the weights that meet it
  // are zero.
  bool has_tail() const { return type == Type::bf16 && width % 2 != 0; }
  void clear_tail(int64_t row) const {
    if (has_tail()) *reinterpret_cast<uint16_t*>(at(row, width)) = 0;
  }
};

// A value as the steps around it want it: `rows` as fp32 where it is normalised, added or handed back, or in the type
// between products; `operand` as the type of the weights that it meets, where that is another one.
struct Stored {
  RowBlock rows, operand;
  const float* factors = nullptr;  // of an s8 operand's weights
  float step = 0, zero = 0;        // the same
  int64_t count = 0;               // rows

  // What a product with weights of this type reads.
  const RowBlock& operand_of(Type type) const { return operand && operand.type == type ? operand : rows; }
};

class Buffers {
 public:
  // Places all values of `program` for `tokens`, a scratch per thread, and `more` bytes.
  Buffers(const Call& call, const Program& program, const Tokens& tokens, int64_t more, Workspace& workspace);

  const Stored& operator[](int value) const { return values_[value]; }
  char* scratch(int thread) const { return scratch_ + thread * scratch_bytes_; }
  char* more() const { return more_; }

 private:
  std::vector<Stored> values_;
  char* scratch_;
  char* more_;
  int64_t scratch_bytes_;
};

}  // namespace efft::cpu
