#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "efft/cuda/linear/fold.cuh"
#include "fold.h"

namespace efft::cuda {
namespace {

constexpr size_t kAlignment = 256;

size_t aligned_up(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

size_t weight_bytes(const Slot& s) { return aligned_up(2 * s.elements()); }
size_t vector_bytes(const Slot& s) { return aligned_up(sizeof(float) * s.rows); }
size_t slot_bytes(const Slot& s) { return weight_bytes(s) + 2 * vector_bytes(s); }

// Calls visit(step, offset) for every product with a folded matrix.
template <typename Visit>
size_t each_folded(const Lowered& encoder, Visit&& visit) {
  size_t offset = 0;
  for (const Step& step : encoder.folded.steps) {
    if (step.op != Op::linear || !step.input_norm.present()) continue;
    visit(step, offset);
    offset += slot_bytes(encoder.slots[step.weight]);
  }
  return offset;
}

template <typename T>
FoldedMatrix<T> matrix_at(const Slot& slot, const void* folded, size_t offset) {
  char* const start = static_cast<char*>(const_cast<void*>(folded)) + offset;
  return {reinterpret_cast<T*>(start), reinterpret_cast<float*>(start + weight_bytes(slot)),
          reinterpret_cast<float*>(start + weight_bytes(slot) + vector_bytes(slot))};
}

}  // namespace

template <typename T>
FoldedMatrix<T> folded_matrix(const Lowered& encoder, const void* folded, int slot) {
  FoldedMatrix<T> found{};
  each_folded(encoder, [&](const Step& step, size_t offset) {
    if (step.weight == slot) found = matrix_at<T>(encoder.slots[slot], folded, offset);
  });
  return found;
}

size_t folded_bytes(const Lowered& encoder) {
  return each_folded(encoder, [](const Step&, size_t) {});
}

template <typename T>
cudaError_t fold_weights(const Lowered& encoder, const T* matrices, const float* vectors, void* folded,
                         cudaStream_t stream) {
  const auto& slots = encoder.slots;
  cudaError_t error = cudaSuccess;
  each_folded(encoder, [&](const Step& step, size_t offset) {
    if (error != cudaSuccess) return;
    const Slot& slot = slots[step.weight];
    const FoldedMatrix<T> to = matrix_at<T>(slot, folded, offset);
    const auto vector = [&](int index) { return vectors + slots[index].offset; };
    error = fold<T>({matrices + slot.offset, vector(step.bias), vector(step.input_norm.gamma),
                     vector(step.input_norm.beta), to.w, to.sums, to.bias},
                    static_cast<int>(slot.rows), static_cast<int>(slot.columns), stream);
  });
  return error;
}

#define EFFT_FOLD(T)                                                        \
  template FoldedMatrix<T> folded_matrix(const Lowered&, const void*, int); \
  template cudaError_t fold_weights(const Lowered&, const T*, const float*, void*, cudaStream_t);
EFFT_FOLD(__half)
EFFT_FOLD(__nv_bfloat16)

}  // namespace efft::cuda
