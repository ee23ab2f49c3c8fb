// The two products of attention as wgmma takes them: queries or probabilities from registers, keys or values from
// shared memory.
#pragma once

#include "efft/cuda/attention/pipeline.cuh"

namespace efft::cuda {

// Starts scores = queries keys^T.
template <typename T, int kHead>
__device__ inline void wgmma_scores(Accumulator<Panels<kHead>::kRows>& scores, const Operand<kHead>& queries,
                                    uint32_t keys) {
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < kHead / 16; ++step) {
    const uint64_t right = Panels<kHead>::descriptor(keys, Panels<kHead>::key_step(step));
    ptx::Wgmma<T, Panels<kHead>::kRows>::template registers<false>(scores, queries[step], right, step > 0);
  }
  ptx::wgmma_commit_group();
}

// Starts output += probabilities values.
template <typename T, int kHead>
__device__ inline void wgmma_output(Accumulator<kHead>& output, const Operand<Panels<kHead>::kRows>& probabilities,
                                    uint32_t values) {
  ptx::wgmma_fence();
#pragma unroll
  for (int step = 0; step < Panels<kHead>::kRows / 16; ++step) {
    const uint64_t right = Panels<kHead>::descriptor(values, Panels<kHead>::value_step(step));
    ptx::Wgmma<T, kHead>::template registers<true>(output, probabilities[step], right, true);
  }
  ptx::wgmma_commit_group();
}

}  // namespace efft::cuda
