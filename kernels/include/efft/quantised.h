// The archived form of an encoder's matrices in 8 bits, independent of any processor's layout.
//
//   QuantisedHeader | one QuantisedEntry per matrix | the matrices' data
//
// The matrices are those of efft/weights.h, in its order. All numbers are little-endian; offsets are bytes from the
// block's start and multiples of 64. A matrix that would lose too much in 8 bits is stored in bf16.
#pragma once

#include <cstdint>

namespace efft {

constexpr char kQuantisedMagic[9] = "efft-q01";

struct QuantisedHeader {
  char magic[8];
  int64_t layers, hidden, embedding, intermediate;
  int64_t entries;
};

enum class QuantisedType : int64_t { bf16 = 1, s8 = 3 };

struct QuantisedEntry {
  QuantisedType type;
  int64_t outputs, inputs;
  int64_t data;     // row-major [outputs, inputs]
  int64_t scales;   // s8: fp32 [outputs]
  int64_t factors;  // s8: fp32 [inputs]; weight = scale[output] * integer * factor[input], and the operand is
                    // multiplied by factor[input] too: its outliers have moved into the weights
};

}  // namespace efft
