// The two products of attention as mma.sync takes them: queries or probabilities from registers, keys or values from
// shared memory.
#pragma once

#include "efft/cuda/attention/fragments.cuh"
#include "efft/cuda/attention/load.cuh"

namespace efft::cuda {

// scores = queries keys^T
template <typename T, int kHead, int kKeys>
__device__ inline void mma_scores(Accumulator<kKeys>& scores, const Operand<kHead>& queries, uint32_t keys) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[group][i] = 0.f;
  }
#pragma unroll
  for (int step = 0; step < kHead / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < kKeys / 16; ++pair) {
      uint32_t b[4];
      const int row = 16 * pair + lane / 16 * 8 + lane % 8;
      ptx::ldmatrix_x4(b, keys + SwizzledBlock<kHead>::offset(row, 2 * step + lane / 8 % 2));
      ptx::mma_m16n8k16<T>(scores[2 * pair], queries[step], b[0], b[1]);
      ptx::mma_m16n8k16<T>(scores[2 * pair + 1], queries[step], b[2], b[3]);
    }
  }
}

// output += probabilities values
template <typename T, int kHead, int kKeys>
__device__ inline void mma_output(Accumulator<kHead>& output, const Operand<kKeys>& probabilities, uint32_t values) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
    for (int pair = 0; pair < kHead / 16; ++pair) {
      uint32_t b[4];
      ptx::ldmatrix_x4_trans(b, values + SwizzledBlock<kHead>::offset(16 * step + lane % 16, 2 * pair + lane / 16));
      ptx::mma_m16n8k16<T>(output[2 * pair], probabilities[step], b[0], b[1]);
      ptx::mma_m16n8k16<T>(output[2 * pair + 1], probabilities[step], b[2], b[3]);
    }
  }
}

}  // namespace efft::cuda
