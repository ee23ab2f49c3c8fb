// The tables of positions that disentangled attention multiplies by, in the type of the activations: made once, behind
// the prepared matrices, since their slots are vectors in fp32.
#pragma once

#include <cuda_runtime.h>

#include "efft/program.h"

namespace efft::cuda {

// Elements of all of them, one behind the other, each from a multiple of 128 on; 0: the encoder has none.
int64_t position_table_elements(const Lowered& encoder);

// Where the table of a slot (position_keys, position_queries) begins.
int64_t position_table_at(const Lowered& encoder, int slot);

// Fills `tables` (position_table_elements) on `stream`. T: __half or __nv_bfloat16.
template <typename T>
cudaError_t make_position_tables(const Lowered& encoder, const float* vectors, T* tables, cudaStream_t stream);

}  // namespace efft::cuda
