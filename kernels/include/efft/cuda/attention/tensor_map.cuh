// The tensor maps through which attention/ring.cuh copies queries, keys and values.
#pragma once

#include "efft/cuda/linear/tensor_map.cuh"

namespace efft::cuda {

// A view of queries (one part), or of keys and values (two), within rows of `width` elements, as [heads, parts, panels,
// rows, columns of a panel], so that one copy brings `box_rows` rows of all parts of one head, panel after panel as
// wgmma reads them. A panel's row, at most 128 bytes, is the width of the swizzle.
template <typename T, int kHead>
cudaError_t encode_tensor_map(CUtensorMap* map, const T* first, int rows, int width, int heads, int box_rows,
                              int parts) {
  const auto encode = tensor_map_encoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  constexpr cuuint32_t kColumns = kHead < 64 ? kHead : 64;
  constexpr cuuint32_t kPanels = kHead / kColumns;
  const cuuint64_t part = cuuint64_t(heads) * kHead;
  const cuuint64_t sizes[5] = {kColumns, cuuint64_t(rows), kPanels, cuuint64_t(parts), cuuint64_t(heads)};
  const cuuint64_t strides[4] = {width * sizeof(T), kColumns * sizeof(T), part * sizeof(T), kHead * sizeof(T)};
  const cuuint32_t box[5] = {kColumns, cuuint32_t(box_rows), kPanels, cuuint32_t(parts), 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const auto swizzle = kColumns * sizeof(T) == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B;
  const CUresult result = encode(map, kTensorMapType<T>, 5, const_cast<T*>(first), sizes, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                 CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace efft::cuda
