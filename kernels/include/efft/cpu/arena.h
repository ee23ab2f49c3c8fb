// The matrix arena as the CPU engine reads it: one block of bytes that says itself what it holds.
//
//   header | one entry per matrix | panels, each matrix at a multiple of 64 bytes
//
// qkv is stored as two matrices, q [H, H] and kv [2H, H], so that the last layer can compute queries for fewer rows.
// The block fits the instruction set that made it and no other; it is made when a model is loaded, never archived.
#pragma once

#include <cstdint>
#include <vector>

#include "efft/cpu/kernels.h"

namespace efft::cpu {

struct ArenaShape {
  int64_t layers, hidden, embedding, intermediate;
  bool projects() const { return embedding != hidden; }
};

enum class Matrix { q, kv, attention_output, intermediate, output };
constexpr int64_t kMatricesPerLayer = 5;

struct ArenaEntry {
  Type type;
  int32_t reserved;
  int64_t outputs, depth;
  int64_t data, scales, corrections, factors;  // offsets in bytes from the block's start; the last three: s8 only
};

struct ArenaHeader {
  char magic[8];
  char instruction_set[24];
  ArenaShape shape;
  int64_t bytes;
  int64_t entries;
};

// Read access to a prepared block; the block must outlive it.
class Arena {
 public:
  explicit Arena(const void* block) : block_(static_cast<const char*>(block)) {}

  // Throws std::runtime_error naming `matrices` unless the block was prepared here for this shape.
  static Arena checked(const void* block, int64_t bytes, const ArenaShape& shape);

  Panels panels(int64_t layer, Matrix matrix) const { return panels(entry(layer, matrix)); }
  Panels projection() const { return panels(entries()[0]); }
  // fp32 as soon as one matrix wants its operands so, else bf16: the type between products, also around 8-bit ones.
  Type activation_type() const;

 private:
  const ArenaHeader& header() const { return *reinterpret_cast<const ArenaHeader*>(block_); }
  const ArenaEntry* entries() const { return reinterpret_cast<const ArenaEntry*>(block_ + sizeof(ArenaHeader)); }
  const ArenaEntry& entry(int64_t layer, Matrix matrix) const {
    return entries()[header().shape.projects() + layer * kMatricesPerLayer + static_cast<int64_t>(matrix)];
  }
  Panels panels(const ArenaEntry& e) const {
    return {e.type,
            block_ + e.data,
            e.outputs,
            e.depth,
            reinterpret_cast<const float*>(block_ + e.scales),
            reinterpret_cast<const float*>(block_ + e.corrections),
            reinterpret_cast<const float*>(block_ + e.factors)};
  }

  const char* block_;
};

// One row-major matrix on its way into a block.
struct MatrixSource {
  const void* data;
  Type type;  // as stored; f16 is widened, and so is what the processor cannot multiply
  int64_t outputs, depth;
  const float* scales;   // s8: one per output
  const float* factors;  // s8: one per input; see Panels
};

// The matrices of the plain arena of efft/encoder.h, in the order of the block's entries.
std::vector<MatrixSource> plain_sources(const ArenaShape& shape, const void* matrices, Type type);

// The same of the archived 8-bit form (efft/quantised.h). Throws std::runtime_error naming `matrices` when the bytes
// are not that form or hold another shape.
std::vector<MatrixSource> quantised_sources(const ArenaShape& shape, const void* bytes, int64_t size);

// Whether the bytes claim to be the archived 8-bit form.
bool is_quantised(const void* bytes, int64_t size);

int64_t prepared_bytes(const std::vector<MatrixSource>& sources);

// Writes the block on `threads` threads.
void prepare(const ArenaShape& shape, const std::vector<MatrixSource>& sources, void* block, int threads);

// How matrices of a stored type are multiplied here.
const Format& format_of(Type type);

}  // namespace efft::cpu
