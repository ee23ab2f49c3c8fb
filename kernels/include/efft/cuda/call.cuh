// What differs from one call of the encoder to the next, kept in device memory, so that a captured graph can be
// replayed on other tensors, batch sizes and lengths within the bucket it was captured for.
#pragma once

#include <cstdint>

namespace efft::cuda {

struct Call {
  const int64_t* ids;       // [batch, length]
  const int64_t* segments;  // [batch, length]
  const int64_t* mask;      // [batch, length]; a token is valid where it is not 0, wherever in the row that is
  void* out;
  int batch;
  int length;
};

}  // namespace efft::cuda
