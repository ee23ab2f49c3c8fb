// The archived form of an encoder's matrices in 8 bits, independent of any processor's layout.
//
//   QuantisedHeader | one QuantisedEntry per matrix | the matrices' data
//
// The matrices are those of efft/weights.h, in its order. All numbers are little-endian; offsets are bytes from the
// block's start and multiples of 64. A matrix that would lose too much in 8 bits is stored in bf16. The first version,
// "efft-q01", has entries without `step`, and no type but bf16 and s8.
#pragma once

#include <cstdint>
#include <vector>

#include "efft/program.h"

namespace efft {

constexpr char kQuantisedMagic[9] = "efft-q02";
constexpr char kQuantisedMagicWithoutSteps[9] = "efft-q01";

struct QuantisedHeader {
  char magic[8];
  int64_t layers, hidden, embedding, intermediate;
  int64_t entries;
};

enum class QuantisedType : int64_t { bf16 = 1, s8 = 3, e4m3 = 4 };

struct QuantisedEntry {
  QuantisedType type;
  int64_t outputs, inputs;
  int64_t data;     // row-major [outputs, inputs]
  int64_t scales;   // 8 bits: fp32 [outputs]
  int64_t factors;  // 8 bits: fp32 [inputs]; weight = scale[output] * number * factor[input], and the operand is
                    // multiplied by factor[input] too: its outliers have moved into the weights
  int64_t step;     // 8 bits: the lower half holds an fp32, what 1 in an operand stands for, the same for every token;
                    // 0: each token has its own. s8: the upper half holds the unsigned number that stands for 0
};

constexpr int64_t kQuantisedEntryBytesWithoutSteps = 6 * sizeof(int64_t);

// Whether the bytes begin as an archived 8-bit form does.
bool is_quantised(const void* bytes, int64_t size);

// How many bytes from the start hold all but data, scales and factors.
int64_t quantised_table_bytes(const Lowered& encoder);

// The matrices in the order of the slots, read from `table`, the first quantised_table_bytes (or more) of a block of
// `size` bytes that lies at `base`, maybe on another device. Throws std::runtime_error with one line, "matrices: ...",
// where the block is cut short, damaged or another encoder's.
std::vector<WeightView> quantised_matrices(const Lowered& encoder, const void* table, const void* base, int64_t size);

}  // namespace efft
