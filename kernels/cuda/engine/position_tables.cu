#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <string_view>

#include "efft/cuda/rows/positions.cuh"
#include "position_tables.h"

namespace efft::cuda {
namespace {

constexpr int64_t kStep = 128;

bool is_table(const Slot& slot) {
  const std::string_view name = slot.name;
  const size_t dot = name.rfind('.');
  const std::string_view part = dot == std::string_view::npos ? name : name.substr(dot + 1);
  return part == "position_keys" || part == "position_queries";
}

// Calls visit(slot's index, offset) for each table; returns the end.
template <typename Visit>
int64_t each_table(const Lowered& encoder, Visit&& visit) {
  int64_t offset = 0;
  if (encoder.spec.relative != Relative::disentangled) return offset;
  for (size_t i = 0; i < encoder.slots.size(); ++i) {
    if (!is_table(encoder.slots[i])) continue;
    visit(static_cast<int>(i), offset);
    offset += (encoder.slots[i].elements() + kStep - 1) / kStep * kStep;
  }
  return offset;
}

}  // namespace

int64_t position_table_elements(const Lowered& encoder) {
  return each_table(encoder, [](int, int64_t) {});
}

int64_t position_table_at(const Lowered& encoder, int slot) {
  int64_t found = 0;
  each_table(encoder, [&](int table, int64_t offset) {
    if (table == slot) found = offset;
  });
  return found;
}

template <typename T>
cudaError_t make_position_tables(const Lowered& encoder, const float* vectors, T* tables, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  each_table(encoder, [&](int table, int64_t offset) {
    const Slot& slot = encoder.slots[table];
    if (error == cudaSuccess) error = round_to<T>(vectors + slot.offset, tables + offset, slot.elements(), stream);
  });
  return error;
}

#define EFFT_POSITION_TABLES(T) \
  template cudaError_t make_position_tables(const Lowered&, const float*, T*, cudaStream_t);
EFFT_POSITION_TABLES(__half)
EFFT_POSITION_TABLES(__nv_bfloat16)

}  // namespace efft::cuda
