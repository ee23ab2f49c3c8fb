// Which kernel makes a product. Every backend bids what it would take, in microseconds; the lowest bid wins. No CUDA
// header: tests ask for the choices of a device that they make up.
//
// The bids stand for measurements on an H200 (docs/kernels.md): their differences part what was faster from what was
// slower there, which is all that they are used for.
#pragma once

#include "efft/cuda/device.h"
#include "efft/cuda/kinds.h"

namespace efft::cuda {

enum class Backend {
  library,    // cuBLASLt: any device and type; computes all rows that it is launched for
  few_rows,   // linear/few.cuh, sm_90a: reads the number of tokens on the device
  many_rows,  // linear/many.cuh, sm_90a: the same
};

// How the many rows' kernel cuts a product: into tiles of 128 tokens by so many outputs.
enum class ManyCut {
  columns96,
  columns176,  // with GELU only
  columns192,  // with GELU only
  columns256,  // without an activation only
  turns192,    // with GELU and no norm only; the epilogue runs beside the next tile's products
};

struct FewChoice {
  int rows, columns;
  int splits;   // blocks that share a tile, each with a part of K
  int sharers;  // or tiles along the rows that share copies of the weights: the cluster's other use
};

constexpr int kMostMoments = 16;  // of a row that the many rows' kernel can normalise

struct LinearShape {
  int rows;  // of tokens, to be expected
  int n, k;  // outputs, inputs
  Pointwise pointwise = Pointwise::none;
  bool closes = false;    // adds a residual, and may be asked for moments
  int moments = 0;        // that each row of the input comes with; 0: the input is as it is
  bool own_only = false;  // only kernels that read the number of tokens on the device will do
  bool aligned = true;    // both operands start on 16 bytes
  bool two_bytes = true;  // elements of two bytes
};

struct LinearPlan {
  Backend backend;
  ManyCut cut;     // where backend is many_rows
  FewChoice tile;  // where it is few_rows
  float microseconds;

  // Outputs that one of a row's moments tells of, where the product leaves moments.
  int moment_columns() const { return backend == Backend::many_rows ? 96 : tile.columns; }
};

// Whether the kernels of sm_90a can make the product: the copy engine reads rows of whole 16 bytes.
inline bool own_linear(const DeviceInfo& device, int n, int k) { return device.hopper && n % 8 == 0 && k % 8 == 0; }

// Never fails: where own_only is asked for, own_linear must hold.
LinearPlan choose_linear(const DeviceInfo& device, const LinearShape& shape);

// How products of eight-bit operands (linear/eight.cuh) are cut: as ManyCut, in turns but for the narrowest and the
// widest.
enum class EightBitCut { columns96, turns128, turns176, turns192, columns256 };

struct EightBitShape {
  int rows, n, k;
  bool gelu = false;
};

// Whether there is a kernel for the product: of e4m3, or of integers.
inline bool eight_bit_linear(const DeviceInfo& device, bool e4m3, int n, int k) {
  return (e4m3 ? device.e4m3 : device.integers) && n % 16 == 0 && k % 16 == 0;
}

EightBitCut choose_eight_bits(const DeviceInfo& device, const EightBitShape& shape);

// Tokens to expect where up to `capacity` fit: beyond a single sequence's worth, batches are half padding on average.
int expected_tokens(int capacity);

}  // namespace efft::cuda
