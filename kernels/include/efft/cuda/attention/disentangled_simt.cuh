// Disentangled attention in fp32 on the ordinary arithmetic units: exact products, any even head size up to 128. Sums
// are taken in parts as in attention/simt.cuh.
#pragma once

#include <cmath>

#include "efft/cuda/attention/disentangled.cuh"
#include "efft/cuda/attention/simt.cuh"

namespace efft::cuda {

// 16 x 16 threads; a tile has as many queries as keys. The band of their distances has a column for each, the m-th that
// of the first query and the last key plus m.
template <int kHead>
struct DisentangledSimtShared {
  static constexpr int kLanes = 16;
  static constexpr int kThreads = kLanes * kLanes;
  static constexpr int kTile = kHead > 64 ? 16 : 32;
  static constexpr int kBand = 2 * kTile;
  float queries[kTile][kHead + 4];
  float keys[kTile][kHead + 4];
  float values[kTile][kHead + 4];
  float band_keys[kBand][kHead + 4];
  float band_queries[kBand][kHead + 4];
  float by_row[kTile][kBand + 1];
  float by_key[kTile][kBand + 1];
  float probabilities[kTile][kTile + 4];
};

// Of two rows in shared memory, 16 columns at a time.
template <int kHead>
__device__ inline float dot_in_parts(const float* a, const float* b) {
  float sum = 0.f;
#pragma unroll 1
  for (int first = 0; first < kHead; first += 16) {
    float part = 0.f;
#pragma unroll
    for (int column = first; column < first + 16; column += 4) {
      part = dot(part, *reinterpret_cast<const float4*>(a + column), *reinterpret_cast<const float4*>(b + column));
    }
    sum += part;
  }
  return sum;
}

template <int kHead>
class DisentangledSimtTile {
 public:
  using Shared = DisentangledSimtShared<kHead>;
  static constexpr int kTile = Shared::kTile;
  static constexpr int kEach = kTile / Shared::kLanes;  // rows, and keys, of a thread
  static constexpr int kOutputs = kHead / Shared::kLanes;

  __device__ DisentangledSimtTile(const DisentangledArguments<float>& arguments, Shared& shared,
                                  const SequenceTile& tile)
      : a_(arguments), shared_(shared), tile_(tile) {}

  __device__ void attend() {
    const auto& a = a_.attention;
    load_rows<kHead, kTile, Shared::kThreads>(shared_.queries, a.query(tile_.begin + tile_.row, tile_.head), a.width(),
                                              tile_.length - tile_.row, nullptr, a.head_size);
    for (int first_key = 0; first_key < tile_.length; first_key += kTile) {
      load(first_key);
      __syncthreads();
      if (a_.position_keys != nullptr) multiply(shared_.queries, shared_.band_keys, shared_.by_row);
      if (a_.position_queries != nullptr) multiply(shared_.keys, shared_.band_queries, shared_.by_key);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kEach; ++i) score(i, tile_.length - first_key);
      __syncwarp();  // the 16 lanes of a row are in one warp, and so are all that read its probabilities
      accumulate();
      __syncthreads();
    }
    store();
  }

 private:
  __device__ void load(int first_key) {
    const auto& a = a_.attention;
    const int valid = tile_.length - first_key, begin = tile_.begin + first_key;
    load_rows<kHead, kTile, Shared::kThreads>(shared_.keys, a.key(begin, tile_.head), a.width(), valid, nullptr,
                                              a.head_size);
    load_rows<kHead, kTile, Shared::kThreads>(shared_.values, a.value(begin, tile_.head), a.width(), valid, nullptr,
                                              a.head_size);
    const int nearest = tile_.row - first_key - kTile + 1;
    load_band(shared_.band_keys, a_.position_keys, nearest);
    load_band(shared_.band_queries, a_.position_queries, nearest);
  }

  __device__ void load_band(float (*to)[kHead + 4], const float* table, int nearest) {
    if (table == nullptr) return;
    for (int i = threadIdx.x; i < Shared::kBand * kHead; i += Shared::kThreads) {
      const int column = i / kHead, element = i % kHead;
      const bool valid = element < a_.attention.head_size;
      to[column][element] = valid ? a_.position(table, a_.row(nearest + column), tile_.head)[element] : 0.f;
    }
  }

  __device__ void multiply(const float (*rows)[kHead + 4], const float (*band)[kHead + 4],
                           float (*to)[Shared::kBand + 1]) const {
#pragma unroll 1
    for (int column = x_; column < Shared::kBand; column += Shared::kLanes) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) to[y_ + 16 * i][column] = dot_in_parts<kHead>(rows[y_ + 16 * i], band[column]);
    }
  }

  // The i-th row's probabilities of one tile of keys, left in shared memory; what was accumulated is rescaled.
  __device__ void score(int i, int valid_keys) {
    const int row = y_ + 16 * i;
    float scores[kEach], maximum = maximum_[i];
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int key = x_ + 16 * k;
      const int column = row - key + kTile - 1;
      float sum = dot_in_parts<kHead>(shared_.queries[row], shared_.keys[key]);
      if (a_.position_keys != nullptr) sum += shared_.by_row[row][column];
      if (a_.position_queries != nullptr) sum += shared_.by_key[key][column];
      scores[k] = key < valid_keys ? sum * a_.attention.scale : -INFINITY;
      maximum = fmaxf(maximum, scores[k]);
    }
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) {
      maximum = fmaxf(maximum, __shfl_xor_sync(~0u, maximum, distance));
    }
    const float origin = maximum == -INFINITY ? 0.f : maximum;
    const float correction = expf(maximum_[i] - origin);
    maximum_[i] = maximum;
    float sum = 0.f;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const float p = expf(scores[k] - origin);
      shared_.probabilities[row][x_ + 16 * k] = p;
      sum += p;
    }
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    sum_[i] = sum_[i] * correction + sum;
#pragma unroll
    for (int c = 0; c < kOutputs; ++c) output_[i][c] *= correction;
  }

  __device__ void accumulate() {
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      float part[kOutputs] = {};
#pragma unroll 4
      for (int key = 0; key < kTile; ++key) {
        const float p = shared_.probabilities[y_ + 16 * i][key];
#pragma unroll
        for (int c = 0; c < kOutputs; ++c) part[c] = fmaf(p, shared_.values[key][x_ + 16 * c], part[c]);
      }
#pragma unroll
      for (int c = 0; c < kOutputs; ++c) output_[i][c] += part[c];
    }
  }

  __device__ void store() const {
    const auto& a = a_.attention;
    const float* const bias = a.value_bias(tile_.head);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int row = tile_.row + y_ + 16 * i;
      if (row >= tile_.length) continue;
#pragma unroll
      for (int c = 0; c < kOutputs; ++c) {
        const int column = x_ + 16 * c;
        if (column >= a.head_size) continue;
        a.output(tile_.begin + row, tile_.head)[column] = output_[i][c] / sum_[i] + (bias ? bias[column] : 0.f);
      }
    }
  }

  const DisentangledArguments<float>& a_;
  Shared& shared_;
  const SequenceTile& tile_;
  const int x_ = threadIdx.x % Shared::kLanes;
  const int y_ = threadIdx.x / Shared::kLanes;
  float maximum_[2] = {-INFINITY, -INFINITY};
  float sum_[2] = {};
  float output_[kEach][kOutputs] = {};
};

template <int kHead>
__global__ void __launch_bounds__(DisentangledSimtShared<kHead>::kThreads)
    attention_disentangled_simt_kernel(const __grid_constant__ DisentangledArguments<float> arguments, int tiles) {
  using Shared = DisentangledSimtShared<kHead>;
  extern __shared__ __align__(128) unsigned char bytes[];
  wait_then_release();
  const int sequence = blockIdx.x / tiles;
  const int begin = __ldg(arguments.attention.cu_seqlens + sequence);
  const int length = __ldg(arguments.attention.cu_seqlens + sequence + 1) - begin;
  const SequenceTile tile{begin, length, int(blockIdx.x) % tiles * Shared::kTile, int(blockIdx.y)};
  if (tile.row >= length) return;
  DisentangledSimtTile<kHead>(arguments, *reinterpret_cast<Shared*>(bytes), tile).attend();
}

}  // namespace efft::cuda
