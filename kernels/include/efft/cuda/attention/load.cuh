// Blocks of keys or values in shared memory, laid out without bank conflicts.
#pragma once

#include "efft/cuda/ptx/copy.cuh"
#include "efft/cuda/ptx/warp.cuh"

namespace efft::cuda {

// Rows of kHead 16-bit elements. The 16-byte chunks of a row are exchanged by an XOR with the row's number, so that
// the 8 rows of one ldmatrix lie in 8 different groups of banks.
template <int kHead>
struct SwizzledBlock {
  static constexpr int kChunks = kHead / 8;
  static constexpr int kRowBytes = 2 * kHead;

  // Byte offset of a 16-byte chunk of a row. Rows of 64 bytes pair up to fill 128, the width of the banks.
  __device__ static int offset(int row, int chunk) {
    const int key = kChunks >= 8 ? row % 8 : row / 2 % kChunks;
    return row * kRowBytes + 16 * (chunk ^ key);
  }
};

// Starts copying kRows rows of head_size elements, the row-th from row_at(row), to a SwizzledBlock. Rows from
// `valid_rows` (at least one) and columns from head_size on become zeros. kBytes is what one copy moves: 16 where
// head_size and the pointers allow.
template <typename T, int kHead, int kRows, int kThreads, int kBytes, typename RowAt>
__device__ inline void load_rows_at(uint32_t block, const RowAt& row_at, int valid_rows, int head_size) {
  constexpr int kElements = kBytes / int(sizeof(T));
  constexpr int kCopies = kHead / kElements;
  for (int i = threadIdx.x; i < kRows * kCopies; i += kThreads) {
    const int row = i / kCopies;
    const int column = i % kCopies * kElements;
    const bool valid = row < valid_rows && column < head_size;
    const T* source = valid ? row_at(row) + column : row_at(0);
    const int within = column % 8 * int(sizeof(T));
    ptx::cp_async<kBytes>(block + SwizzledBlock<kHead>::offset(row, column / 8) + within, source, valid);
  }
}

// The same for rows that are `stride` elements apart.
template <typename T, int kHead, int kRows, int kThreads, int kBytes>
__device__ inline void load_block(uint32_t block, const T* rows, long long stride, int valid_rows, int head_size) {
  load_rows_at<T, kHead, kRows, kThreads, kBytes>(
      block, [&](int row) { return rows + row * stride; }, valid_rows, head_size);
}

}  // namespace efft::cuda
