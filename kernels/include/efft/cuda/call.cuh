// What differs from one call of the encoder to the next, kept in device memory, so that a captured graph can be
// replayed on other tensors, batch sizes and lengths within the bucket it was captured for.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace efft::cuda {

struct Call {
  const int64_t* ids;       // [batch, length]; packed: [tokens], one sequence behind the other
  const int64_t* segments;  // the same
  const int64_t* mask;      // [batch, length]; a token is valid where it is not 0, wherever in the row that is
  void* out;
  int batch;
  int length;  // packed: no sequence is longer
  // Packed: the first token's index of each sequence, then `tokens`, [batch + 1], so many elements apart. mask is not
  // read.
  const int64_t* offsets = nullptr;
  int64_t stride = 1;
  int tokens = 0;

  __host__ __device__ bool packed() const { return offsets != nullptr; }
  // Where a packed token's id and segment are. row: of unpad's rows.
  __device__ int place(int token, int row) const { return packed() ? token : row; }
  // Rows of a result that has one for each place.
  __device__ int places() const { return packed() ? tokens : batch * length; }
};

}  // namespace efft::cuda
