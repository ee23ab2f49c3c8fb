// Matrices in eight bits on a device: the prepared form, and what the engine knows of it.
//
//   the plain arena in 16 bits | its folded twin, where that is of use | the archived form | sums | EightBitTrailer
//
// The 16-bit weights are those that the eight bits stand for: where launches and latency bind a call and not the matrix
// units, products run in 16 bits and are the more exact for it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "efft/cuda/operand.cuh"
#include "efft/program.h"
#include "efft/quantised.h"

namespace efft::cuda {

// A matrix as the eight-bit kernels want it; f32 as the type: it is none of theirs.
struct EightBitMatrix {
  Type type = Type::f32;
  const void* w = nullptr;         // [outputs, inputs]
  const float* scales = nullptr;   // [outputs]
  const float* sums = nullptr;     // [outputs]: scale times the sum of a row's integers
  const float* factors = nullptr;  // [inputs], or nullptr: all are 1
  FixedSteps steps;                // of operands

  bool present() const { return w != nullptr; }
};

struct EightBits {
  std::vector<EightBitMatrix> slots;  // by slot
  int64_t widest = 0;                 // inputs of the widest
};

struct EightBitTrailer {
  char magic[8];
  int64_t folded;  // offsets from the block's start; folded 0: there is none
  int64_t archive, archive_bytes;
  int64_t sums;
  int64_t reserved[3];
};

// Where the parts of a block lie, for an archived form of so many bytes.
struct EightBitBlock {
  EightBitBlock(const Lowered& encoder, int64_t archive_bytes, bool folds);

  EightBitTrailer trailer;
  int64_t bytes;
};

// The number of bytes in the archived form at `bytes` (device memory, `size` bytes of it); 0 where it is a prepared
// block for this encoder. Throws std::runtime_error, "matrices: ...", where it is neither.
int64_t archived_bytes(const Lowered& encoder, const void* bytes, int64_t size);

// Fills `to` (EightBitBlock::bytes) from the archived form, all in device memory, on `stream`, and waits for it. type:
// f16 or bf16, that of the tables. Throws std::runtime_error.
void prepare_eight_bits(const Lowered& encoder, Type type, const void* archive, const EightBitBlock& block,
                        const float* vectors, void* to, cudaStream_t stream);

// What a prepared block holds, read from the device where it is met for the first time: then a stream must not be
// under capture. Throws std::runtime_error where it is no such block.
struct Prepared {
  std::shared_ptr<const EightBits> eight;
  const void* folded;
};
Prepared prepared_eight_bits(const Lowered& encoder, const void* block, int64_t bytes);

// Forgets a block that goes.
void forget_eight_bits(const void* block);

}  // namespace efft::cuda
