// The matrices as the CPU engine reads them: one block of bytes that says itself what it holds.
//
//   header | two entries per matrix | panels, each at a multiple of 64 bytes
//
// A matrix whose first outputs are queries is stored as two, so that the last layer can compute queries for fewer rows;
// of any other the second entry is empty. The block fits the instruction set that made it and no other; it is made when
// a model is loaded, never archived.
#pragma once

#include <cstdint>
#include <vector>

#include "efft/cpu/kernels.h"
#include "efft/program.h"

namespace efft::cpu {

struct ArenaEntry {
  Type type;
  int32_t gated;  // 0 or 1, see Panels
  float step;     // s8: of operands, or 0
  float zero;     // s8: the unsigned number that stands for 0 in these steps
  int64_t outputs, depth;
  int64_t data, scales, corrections, factors;  // offsets in bytes from the block's start; the last three: s8 only
};

struct ArenaHeader {
  char magic[8];
  char instruction_set[24];
  int64_t bytes;
  int64_t entries;
};

// Which outputs of a matrix: its queries or the others.
enum class Part { queries, others };

// Read access to a prepared block; the block must outlive it.
class Prepared {
 public:
  explicit Prepared(const void* block) : block_(static_cast<const char*>(block)) {}

  // Throws std::runtime_error naming `matrices` unless the block was prepared here for these slots.
  static Prepared checked(const void* block, int64_t bytes, const std::vector<Slot>& slots);

  Panels panels(const Slot& matrix, Part part = Part::others) const {
    return panels(entries()[2 * matrix.index + static_cast<int>(part)]);
  }
  // fp32 as soon as one matrix wants its operands so, else bf16: the type between products, also around 8-bit ones.
  Type activation_type() const;

 private:
  const ArenaHeader& header() const { return *reinterpret_cast<const ArenaHeader*>(block_); }
  const ArenaEntry* entries() const { return reinterpret_cast<const ArenaEntry*>(block_ + sizeof(ArenaHeader)); }
  Panels panels(const ArenaEntry& e) const {
    return {e.type,
            block_ + e.data,
            e.outputs,
            e.depth,
            e.gated != 0,
            reinterpret_cast<const float*>(block_ + e.scales),
            reinterpret_cast<const float*>(block_ + e.corrections),
            reinterpret_cast<const float*>(block_ + e.factors),
            e.step,
            e.zero};
  }

  const char* block_;
};

// The matrices of a plain arena (efft/weights.h), a view per matrix slot.
std::vector<WeightView> plain_matrices(const std::vector<Slot>& slots, const void* arena, Type type);

int64_t prepared_bytes(const std::vector<Slot>& slots, const std::vector<WeightView>& matrices);

// Writes the block on `threads` threads.
void prepare(const std::vector<Slot>& slots, const std::vector<WeightView>& matrices, void* block, int threads);

// How matrices of a stored type are multiplied here; f16 is widened, and so is what the processor cannot multiply.
const Format& format_of(Type type);

}  // namespace efft::cpu
