// Between torch's stable tensors and the CPU engine's raw pointers.
#pragma once

#include <algorithm>

#include "checks.h"
#include "efft/cpu/encoder.h"

namespace efft {
namespace {

inline int threads() { return std::max<int>(1, static_cast<int>(torch::stable::get_num_threads())); }

inline Type type_of(const Tensor& tensor) {
  if (tensor.scalar_type() == ScalarType::BFloat16) return Type::bf16;
  return tensor.scalar_type() == ScalarType::Half ? Type::f16 : Type::f32;
}

inline const int64_t* integers(const Tensor& tensor) { return static_cast<const int64_t*>(tensor.data_ptr()); }
inline const float* floats(const Tensor& tensor) { return static_cast<const float*>(tensor.data_ptr()); }

// ids and segments are contiguous, and mask of a padded batch; of a packed one its first column is read.
inline cpu::Batch batch_of(const Tensor& ids, const Tensor& segments, const Tensor& mask, const InputSizes& sizes) {
  cpu::Batch batch{integers(ids), integers(segments), integers(mask), sizes.batch, sizes.length};
  if (!sizes.packed) return batch;
  batch.offsets = integers(mask);
  batch.stride = mask.stride(0);
  batch.tokens = sizes.cells;
  return batch;
}

inline cpu::Tables tables_of(const EncoderSpec& spec, const Tensor& word, const Tensor& position,
                             const Tensor& segment) {
  const void* positions = spec.positions == PositionCount::none ? nullptr : position.data_ptr();
  return {{word.data_ptr(), positions, spec.types ? segment.data_ptr() : nullptr, type_of(word), word.size(1)},
          word.size(0),
          position.size(0),
          segment.size(0)};
}

}  // namespace
}  // namespace efft
