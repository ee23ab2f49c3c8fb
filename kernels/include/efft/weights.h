// The weights of an encoder: the only list of them, with their order and where each lies.
//
// An encoder's weights travel as five tensors (kArenas): the three embedding tables, one arena of all matrices in the
// type of the weights, and one of all vectors in fp32. Five tensors instead of two hundred keep the cost of an operator
// call independent of the number of layers. Matrices are row-major [outputs, inputs], as torch.nn.Linear stores them;
// qkv stacks the rows of query, key and value, each ordered by head.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "efft/spec.h"
#include "efft/types.h"

namespace efft {

enum class SlotKind { table, matrix, vector };

// What stands before a matrix.
enum class Feed { none, norm, product, attention, activation };

// The tensors that hold the slots: the tables in the order of `slots`, then the arenas.
enum Arena : int { kWord, kPosition, kSegment, kMatrices, kVectors, kArenas };

struct Slot {
  std::string name;  // "word", "projection", "projection.bias", "3.qkv", "3.attention_norm.gamma"
  SlotKind kind;
  int64_t rows;             // tables: any number (0); matrices: outputs; vectors: elements
  int64_t columns;          // of tables and matrices; vectors: 1
  int64_t offset = 0;       // in elements from the start of its arena; tables: 0
  int layer = -1;           // -1: outside the layers
  Feed feed = Feed::none;   // matrices: what makes their input
  std::string fed_by = {};  // matrices: a norm ("3.attention_norm"), a matrix ("projection"), or "3.attention"
  int index = 0;            // among the slots of its kind
  int64_t queries = 0;      // matrices: how many outputs, the first ones, are queries
  bool gated = false;       // matrices: the first half of the outputs is the gate of the second

  int64_t elements() const { return rows * columns; }
};

// All weights of an encoder, the tables first, the others in the order of computation; within an arena they lie in this
// order without gaps.
std::vector<Slot> slots(const EncoderSpec& spec);

// Elements of the matrix or vector arena.
int64_t arena_elements(const std::vector<Slot>& slots, SlotKind kind);

// One line per slot: name, kind, rows, columns, offset, layer, feed, fed_by ("-" where there is none), by blanks.
std::string text(const std::vector<Slot>& slots);

enum class WeightLayout { row_major, panels };

// A matrix wherever it lies, with what is needed to multiply by it.
struct WeightView {
  const void* data = nullptr;
  Type type = Type::f32;
  WeightLayout layout = WeightLayout::row_major;
  int64_t outputs = 0, inputs = 0;
  const float* scales = nullptr;   // 8 bits: one per output; weight = scale * number * factor
  const float* factors = nullptr;  // 8 bits: one per input; operands are multiplied by it before they are rounded
  float step = 0;                  // 8 bits: of operands, the same for every token; 0: each token has its own
  float zero = 0;                  // s8: the unsigned number that stands for 0 in these steps
  const float* bias = nullptr;     // one per output, or none

  // Outputs [first, first + count); row-major only.
  WeightView rows(int64_t first, int64_t count) const;
};

}  // namespace efft
