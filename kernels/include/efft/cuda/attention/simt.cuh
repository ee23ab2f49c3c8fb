// Attention in fp32 on the ordinary arithmetic units: exact products, any even head size. Same walk over packed tokens
// as attention/packed.cuh; 16 lanes share a query row. Long sums are taken in parts, 16 columns of a score and one
// block of keys of an output at a time, since the rounding error of one running sum grows with the square root of its
// length.
#pragma once

#include <cmath>

#include "efft/cuda/attention/arguments.cuh"
#include "efft/cuda/attention/mask.cuh"
#include "efft/cuda/attention/tiles.h"
#include "efft/cuda/launch.cuh"

namespace efft::cuda {

// Rows in shared memory are 4 floats longer than their content, so that 8 lanes reading 16 bytes of 8 rows each use
// all banks once.
template <int kHead>
struct SimtShared {
  using Tiles = attention_tiles::Simt<kHead>;
  float queries[Tiles::kRows][kHead + 4];
  float keys[Tiles::kKeys][kHead + 4];
  float values[Tiles::kKeys][kHead + 4];
  float probabilities[Tiles::kRows][Tiles::kKeys + 4];
};

// Copies rows of head_size floats plus bias; rows from valid_rows and columns from head_size on become zeros.
template <int kHead, int kRows, int kThreads>
__device__ inline void load_rows(float (*block)[kHead + 4], const float* rows, long long stride, int valid_rows,
                                 const float* bias, int head_size) {
  for (int i = threadIdx.x; i < kRows * kHead; i += kThreads) {
    const int row = i / kHead;
    const int column = i % kHead;
    const bool valid = row < valid_rows && column < head_size;
    block[row][column] = valid ? rows[row * stride + column] + (bias ? bias[column] : 0.f) : 0.f;
  }
}

__device__ inline float dot(float sum, const float4& a, const float4& b) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ inline void add_scaled(float* sum, float factor, const float4& value) {
  sum[0] = fmaf(factor, value.x, sum[0]);
  sum[1] = fmaf(factor, value.y, sum[1]);
  sum[2] = fmaf(factor, value.z, sum[2]);
  sum[3] = fmaf(factor, value.w, sum[3]);
}

// The strip of one thread: rows y + 16 i, keys x + 16 k, and 4 output columns from 4 x in every group of 64.
template <int kHead>
class SimtStrip {
 public:
  using Tiles = attention_tiles::Simt<kHead>;

  template <typename Score>
  __device__ SimtStrip(const int* cu_seqlens, const PackedTile& tile, int first, const Score& score) {
#pragma unroll
    for (int i = 0; i < Tiles::kRowsPerThread; ++i) ranges_[i] = row_keys(cu_seqlens, tile, first + y_ + 16 * i, score);
  }

  // The thread's i-th row, within the tile.
  __device__ int row(int i) const { return y_ + 16 * i; }

  // Probabilities of one block of keys, left in shared memory; what was accumulated is rescaled.
  template <typename Added>
  __device__ void score(SimtShared<kHead>& shared, int first_key, float scale, const Added& added) {
    float scores[Tiles::kRowsPerThread][Tiles::kKeysPerThread] = {};
#pragma unroll 1
    for (int first = 0; first < kHead; first += 16) {
      float part[Tiles::kRowsPerThread][Tiles::kKeysPerThread] = {};
#pragma unroll
      for (int column = first; column < first + 16; column += 4) {
        float4 key[Tiles::kKeysPerThread];
#pragma unroll
        for (int k = 0; k < Tiles::kKeysPerThread; ++k) {
          key[k] = *reinterpret_cast<const float4*>(&shared.keys[x_ + 16 * k][column]);
        }
#pragma unroll
        for (int i = 0; i < Tiles::kRowsPerThread; ++i) {
          const float4 query = *reinterpret_cast<const float4*>(&shared.queries[y_ + 16 * i][column]);
#pragma unroll
          for (int k = 0; k < Tiles::kKeysPerThread; ++k) part[i][k] = dot(part[i][k], query, key[k]);
        }
      }
#pragma unroll
      for (int i = 0; i < Tiles::kRowsPerThread; ++i) {
#pragma unroll
        for (int k = 0; k < Tiles::kKeysPerThread; ++k) scores[i][k] += part[i][k];
      }
    }
#pragma unroll
    for (int i = 0; i < Tiles::kRowsPerThread; ++i) normalize(shared, scores[i], i, first_key, scale, added);
  }

  // output += probabilities values, four keys at a time so that shared memory is read 16 bytes at a time.
  __device__ void accumulate(const SimtShared<kHead>& shared) {
    float part[Tiles::kRowsPerThread][4 * kGroups] = {};
#pragma unroll 1
    for (int key = 0; key < Tiles::kKeys; key += 4) {
      float4 probabilities[Tiles::kRowsPerThread];
#pragma unroll
      for (int i = 0; i < Tiles::kRowsPerThread; ++i) {
        probabilities[i] = *reinterpret_cast<const float4*>(&shared.probabilities[y_ + 16 * i][key]);
      }
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const int column = 64 * group + 4 * x_;
        if (column >= kHead) continue;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float4 value = *reinterpret_cast<const float4*>(&shared.values[key + k][column]);
#pragma unroll
          for (int i = 0; i < Tiles::kRowsPerThread; ++i) {
            add_scaled(part[i] + 4 * group, reinterpret_cast<const float*>(&probabilities[i])[k], value);
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < Tiles::kRowsPerThread; ++i) {
#pragma unroll
      for (int c = 0; c < 4 * kGroups; ++c) output_[i][c] += part[i][c];
    }
  }

  template <typename Score>
  __device__ void store(const AttentionArguments<float, Score>& arguments, int first, int tokens, int head) const {
    const float* bias = arguments.value_bias(head);
#pragma unroll
    for (int i = 0; i < Tiles::kRowsPerThread; ++i) {
      const int row = first + y_ + 16 * i;
      if (row >= tokens) continue;
#pragma unroll
      for (int c = 0; c < 4 * kGroups; ++c) {
        const int column = 64 * (c / 4) + 4 * x_ + c % 4;
        if (column >= arguments.head_size) continue;
        arguments.output(row, head)[column] = output_[i][c] / sum_[i] + (bias ? bias[column] : 0.f);
      }
    }
  }

 private:
  static constexpr int kGroups = (kHead + 63) / 64;

  template <typename Added>
  __device__ void normalize(SimtShared<kHead>& shared, float (&scores)[Tiles::kKeysPerThread], int i, int first_key,
                            float scale, const Added& added) {
    float maximum = maximum_[i];
#pragma unroll
    for (int k = 0; k < Tiles::kKeysPerThread; ++k) {
      const int key = first_key + x_ + 16 * k;
      const bool valid = key >= ranges_[i].begin && key < ranges_[i].end;
      scores[k] = valid ? scale * added(scores[k], i, key) : -INFINITY;
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
    for (int k = 0; k < Tiles::kKeysPerThread; ++k) {
      const float p = expf(scores[k] - origin);
      shared.probabilities[y_ + 16 * i][x_ + 16 * k] = p;
      sum += p;
    }
#pragma unroll
    for (int distance = 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    sum_[i] = sum_[i] * correction + sum;
#pragma unroll
    for (int c = 0; c < 4 * kGroups; ++c) output_[i][c] *= correction;
  }

  const int x_ = threadIdx.x % Tiles::kLanes;
  const int y_ = threadIdx.x / Tiles::kLanes;
  KeyRange ranges_[Tiles::kRowsPerThread];
  float maximum_[4] = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
  float sum_[4] = {};
  float output_[Tiles::kRowsPerThread][4 * kGroups] = {};
};

template <int kHead, typename Score>
__global__ void __launch_bounds__(attention_tiles::Simt<kHead>::kThreads, 2)
    attention_simt_kernel(const AttentionArguments<float, Score> arguments) {
  using Tiles = attention_tiles::Simt<kHead>;
  extern __shared__ __align__(128) unsigned char bytes[];
  SimtShared<kHead>& shared = *reinterpret_cast<SimtShared<kHead>*>(bytes);

  wait_then_release();
  const int head = blockIdx.y;
  const int first = blockIdx.x * Tiles::kRows;
  const PackedTile tile = packed_tile(arguments.cu_seqlens, arguments.batch, first, Tiles::kRows);
  if (first >= tile.tokens) return;

  const long long stride = arguments.width();
  const int head_size = arguments.head_size;
  load_rows<kHead, Tiles::kRows, Tiles::kThreads>(shared.queries, arguments.query(first, head), stride,
                                                  tile.tokens - first, arguments.query_bias(head), head_size);
  SimtStrip<kHead> strip(arguments.cu_seqlens, tile, first, arguments.score);
  const auto added = [&](float score, int i, int key) {
    if constexpr (Score::kAdds) {
      score += arguments.score.added(head, first + strip.row(i) - key);
    }
    return score;
  };
  const KeyRange keys = tile_keys(arguments.cu_seqlens, tile, first, Tiles::kRows, arguments.score);
  for (int begin = keys.begin; begin < keys.end; begin += Tiles::kKeys) {
    const int valid = keys.end - begin;
    load_rows<kHead, Tiles::kKeys, Tiles::kThreads>(shared.keys, arguments.key(begin, head), stride, valid, nullptr,
                                                    head_size);
    load_rows<kHead, Tiles::kKeys, Tiles::kThreads>(shared.values, arguments.value(begin, head), stride, valid, nullptr,
                                                    head_size);
    __syncthreads();
    strip.score(shared, begin, arguments.scale, added);
    __syncwarp();  // the 16 lanes of a row are in one warp, and so are all that read its probabilities
    strip.accumulate(shared);
    __syncthreads();
  }
  strip.store(arguments, first, tile.tokens, head);
}

}  // namespace efft::cuda
