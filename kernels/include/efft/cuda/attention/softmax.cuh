// Softmax over blocks of keys as they come (Milakov and Gimelshein, "Online normalizer calculation for softmax",
// 2018; used as in Dao et al., "FlashAttention", 2022), for a strip of 16 query rows held by one warp.
#pragma once

#include <cmath>

#include "efft/cuda/attention/fragments.cuh"

namespace efft::cuda {

// Scores times this are exponents of two. scale: of a query times a key.
__device__ inline float score_scale(float scale) { return 1.4426950408889634f * scale; }

template <int kColumns>
__device__ inline void rescale(Accumulator<kColumns>& accumulator, const float (&correction)[2]) {
#pragma unroll
  for (int group = 0; group < kColumns / 8; ++group) {
#pragma unroll
    for (int i = 0; i < 4; ++i) accumulator[group][i] *= correction[i / 2];
  }
}

class OnlineSoftmax {
 public:
  __device__ explicit OnlineSoftmax(float scale) : scale_(scale) {}

  // Takes note of a block's largest scores, and rescales what has been accumulated where they ask for it.
  template <int kKeys, int kColumns>
  __device__ void raise(const Accumulator<kKeys>& scores, Accumulator<kColumns>& output) {
    float highest[2];
    largest<kKeys>(scores, highest);
    if (exceeds(highest)) raise_to<kColumns>(highest, output);
  }

  // Takes note of the first block's largest scores: nothing has been accumulated.
  template <int kKeys>
  __device__ void begin(const Accumulator<kKeys>& scores) {
    float highest[2];
    largest<kKeys>(scores, highest);
    over_lanes(highest);
#pragma unroll
    for (int r = 0; r < 2; ++r) origin_[r] = fmaxf(highest[r] * scale_, kLowest);
  }

  // The largest score of each row among this lane's, which is all that `exceeds` asks for.
  template <int kKeys>
  __device__ static void largest(const Accumulator<kKeys>& scores, float (&highest)[2]) {
    highest[0] = highest[1] = -INFINITY;
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        highest[r] = fmaxf(highest[r], fmaxf(scores[group][2 * r], scores[group][2 * r + 1]));
      }
    }
  }

  // Among the scores of the four lanes of a row.
  __device__ static void over_lanes(float (&highest)[2]) {
#pragma unroll
    for (int distance = 1; distance < 4; distance *= 2) {
#pragma unroll
      for (int r = 0; r < 2; ++r) highest[r] = fmaxf(highest[r], __shfl_xor_sync(~0u, highest[r], distance));
    }
  }

  // Whether the origin of any row of the warp has to follow.
  __device__ bool exceeds(const float (&highest)[2]) const {
    return __any_sync(~0u, highest[0] * scale_ > origin_[0] + kSlack || highest[1] * scale_ > origin_[1] + kSlack);
  }

  // highest: this lane's.
  template <int kColumns>
  __device__ void raise_to(float (&highest)[2], Accumulator<kColumns>& output) {
    over_lanes(highest);
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // As its own scores ask, not as other rows of its warp do: those may belong to another request, or to nobody.
      const float highest_here = highest[r] * scale_;
      const float origin = highest_here > origin_[r] + kSlack ? highest_here : origin_[r];
      correction[r] = ptx::ex2_approx(origin_[r] - origin);
      sum_[r] *= correction[r];
      origin_[r] = origin;
    }
    rescale<kColumns>(output, correction);
  }

  // Sums over the four lanes of a row; nothing may be added afterwards but by merge.
  __device__ void total() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum_[r] += __shfl_xor_sync(~0u, sum_[r], 1);
      sum_[r] += __shfl_xor_sync(~0u, sum_[r], 2);
    }
  }

  // Takes in (origin, total) of other keys for the same two rows. Rescales this output, and finds the factors of
  // theirs.
  template <int kColumns>
  __device__ void merge(const float2& row0, const float2& row1, Accumulator<kColumns>& output, float (&factor)[2]) {
    const float2 rows[2] = {row0, row1};
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float origin = fmaxf(origin_[r], rows[r].x);
      correction[r] = ptx::ex2_approx(origin_[r] - origin);
      factor[r] = ptx::ex2_approx(rows[r].x - origin);
      sum_[r] = sum_[r] * correction[r] + rows[r].y * factor[r];
      origin_[r] = origin;
    }
    rescale<kColumns>(output, correction);
  }

  __device__ float origin(int r) const { return origin_[r]; }
  __device__ float sum(int r) const { return sum_[r]; }

  // Turns scores into probabilities, up to a factor for each row that the normalizer takes out.
  template <int kKeys>
  __device__ void exponentiate(Accumulator<kKeys>& scores) {
    float sums[4] = {};
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        scores[group][i] = ptx::ex2_approx(fmaf(scores[group][i], scale_, -origin_[i / 2]));
        sums[i] += scores[group][i];
      }
    }
    sum_[0] += sums[0] + sums[1];
    sum_[1] += sums[2] + sums[3];
  }

  // One over the sum of each row's probabilities.
  __device__ void normalizer(float (&inverse)[2]) const {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = sum_[r];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      inverse[r] = __fdividef(1.f, sum);
    }
  }

 private:
  // The exponents' origin follows the largest score only when that is 2^8 ahead: unnormalized probabilities up to 256
  // are as precise as those up to 1, and most blocks then need no rescaling.
  static constexpr float kSlack = 8.f;
  // Finite, since a row may not have seen any key yet and -inf minus -inf is no number.
  static constexpr float kLowest = -3e38f;

  float scale_;
  float origin_[2] = {kLowest, kLowest};
  float sum_[2] = {0.f, 0.f};  // of this lane's columns only
};

}  // namespace efft::cuda
