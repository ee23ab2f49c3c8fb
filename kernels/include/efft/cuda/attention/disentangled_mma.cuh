// Disentangled attention with mma.sync, for elements of two bytes: any even head size up to 128, sm_80 and later.
#pragma once

#include <cuda_fp16.h>

#include "efft/cuda/attention/disentangled.cuh"
#include "efft/cuda/attention/load.cuh"
#include "efft/cuda/attention/mask.cuh"
#include "efft/cuda/attention/mma.cuh"
#include "efft/cuda/attention/softmax.cuh"

namespace efft::cuda {

// Between 64 queries and 32 keys there are 95 distances, the band; the next keys' band lies 32 lower. Rows of tables
// and what queries make of them stay in rings by distance, so that a step copies and multiplies what 32 new distances
// need only. Keys meet all of the band, unless all its distances share a row.
template <int kHead>
struct DisentangledTiles {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = 32;
  static constexpr int kBand = kRows + kKeys;  // the lowest is not asked for, but makes up whole steps of 16
  static constexpr int kRing = 128;            // the band and the next step's new distances
  // Of what is looked up, in halves: the eight rows and four keys that a warp reads at once lie in 32 banks, by rows (a
  // row further is a distance further, too) as by keys.
  static constexpr int kStride = kRing + 7;

  static constexpr int kKeyBytes = kKeys * kHead * 2;
  static constexpr int kStageBytes = 2 * kKeyBytes;  // of keys and values, two stages
  static constexpr int kRingBytes = kRing * kHead * 2;
  static constexpr int shared_bytes() { return 2 * kStageBytes + 2 * kRingBytes + (kRows + kKeys) * kStride * 2; }
};

template <typename T, int kHead, int kBytes>
class DisentangledTile {
 public:
  using Tiles = DisentangledTiles<kHead>;
  static constexpr int kRows = Tiles::kRows;
  static constexpr int kKeys = Tiles::kKeys;
  static constexpr int kBand = Tiles::kBand;

  __device__ DisentangledTile(const DisentangledArguments<T>& arguments, unsigned char* shared,
                              const SequenceTile& tile)
      : a_(arguments),
        tile_(tile),
        stages_(ptx::shared_address(shared)),
        ring_keys_(stages_ + 2 * Tiles::kStageBytes),
        ring_queries_(ring_keys_ + Tiles::kRingBytes),
        by_row_(reinterpret_cast<__half*>(shared + 2 * Tiles::kStageBytes + 2 * Tiles::kRingBytes)),
        by_key_(by_row_ + kRows * Tiles::kStride),
        warp_(threadIdx.x / 32),
        row_(16 * warp_ + fragment_row()),
        scale_(score_scale(arguments.attention.scale)) {}

  __device__ void attend() {
    load(0, 0, kBand);
    const T* const rows[2] = {query(row_), query(row_ + 8)};
    load_queries<T, kHead>(queries_, rows, nullptr, a_.attention.head_size);
    OnlineSoftmax softmax(1.f);  // scores come with their scale
    Accumulator<kHead> output = {};
    int stage = 0;
    for (int first_key = 0; first_key < tile_.length; first_key += kKeys, stage ^= 1) {
      ptx::cp_async_wait_group<0>();
      __syncthreads();  // copies are there for all, and all have done with what the next ones overwrite
      const int next = first_key + kKeys;
      if (next < tile_.length) load(next, stage ^ 1, stands(next) ? 0 : kKeys);
      const uint32_t keys = stages_ + stage * Tiles::kStageBytes;
      Accumulator<kKeys> scores;
      score(scores, keys, first_key);
      if (tile_.length - first_key < kKeys) mask_tail<kKeys>(scores, tile_.length - first_key);
      softmax.raise<kKeys, kHead>(scores, output);
      softmax.exponentiate<kKeys>(scores);
      Operand<kKeys> probabilities;
      to_operand<T, kKeys>(probabilities, scores);
      mma_output<T, kHead, kKeys>(output, probabilities, keys + Tiles::kKeyBytes);
    }
    float inverse[2];
    softmax.normalizer(inverse);
    T* const to[2] = {result(row_), result(row_ + 8)};
    store_output<T, kHead>(output, inverse, a_.attention.value_bias(tile_.head), to, a_.attention.head_size,
                           a_.attention.out, {0.f, 0.f});
  }

 private:
  __device__ bool exists(int row) const { return tile_.row + row < tile_.length; }
  __device__ const T* query(int row) const {
    return exists(row) ? a_.attention.query(tile_.begin + tile_.row + row, tile_.head) : nullptr;
  }
  __device__ T* result(int row) const {
    return exists(row) ? a_.attention.output(tile_.begin + tile_.row + row, tile_.head) : nullptr;
  }
  // The lowest distance of the band, a multiple of kKeys: one below that of the first query and the last key.
  __device__ int lowest(int first_key) const { return tile_.row - first_key - kKeys; }

  // Whether what the step's new distances would bring into the rings stands there already: their slots hold that of the
  // distances higher by the ring's size (but at the beginning), and all in between share a row.
  __device__ bool stands(int first_key) const {
    constexpr int kFilled = Tiles::kRing - kRows;  // keys of which the rings are full
    const int lowest = this->lowest(first_key);
    return first_key >= kFilled && a_.row(lowest) == a_.row(lowest + Tiles::kRing + kKeys - 1);
  }

  // Starts copying keys and values, and rows for the lowest `count` distances of their band.
  __device__ void load(int first_key, int stage, int count) const {
    const auto& a = a_.attention;
    const int valid = tile_.length - first_key, begin = tile_.begin + first_key;
    const uint32_t keys = stages_ + stage * Tiles::kStageBytes;
    load_block<T, kHead, kKeys, Tiles::kThreads, kBytes>(keys, a.key(begin, tile_.head), a.width(), valid, a.head_size);
    load_block<T, kHead, kKeys, Tiles::kThreads, kBytes>(keys + Tiles::kKeyBytes, a.value(begin, tile_.head), a.width(),
                                                         valid, a.head_size);
    load_ring(first_key, count);
    ptx::cp_async_commit_group();
  }

  __device__ void load_ring(int first_key, int count) const {
    constexpr int kElements = kBytes / int(sizeof(T));
    constexpr int kCopies = kHead / kElements;
    for (int i = threadIdx.x; i < count * kCopies; i += Tiles::kThreads) {
      const int distance = lowest(first_key) + i / kCopies, column = i % kCopies * kElements;
      const bool valid = column < a_.attention.head_size;
      const int row = a_.row(distance), within = column % 8 * int(sizeof(T));
      const int offset = SwizzledBlock<kHead>::offset(slot(distance), column / 8) + within;
      const int from = valid ? column : 0;
      if (a_.position_keys != nullptr)
        ptx::cp_async<kBytes>(ring_keys_ + offset, a_.position(a_.position_keys, row, tile_.head) + from, valid);
      if (a_.position_queries != nullptr)
        ptx::cp_async<kBytes>(ring_queries_ + offset, a_.position(a_.position_queries, row, tile_.head) + from, valid);
    }
  }

  __device__ static int slot(int distance) { return distance & (Tiles::kRing - 1); }

  // 16 rows times 16 of a ring's from slot `first` on, times the scale, into what is looked up.
  __device__ void multiply(const Operand<kHead>& rows, uint32_t ring, int first, __half* to) const {
    const int lane = threadIdx.x % 32;
    float sums[2][4] = {};
    const int row = first + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, ring + SwizzledBlock<kHead>::offset(row, 2 * step + lane / 8 % 2));
      ptx::mma_m16n8k16<T>(sums[0], rows[step], b[0], b[1]);
      ptx::mma_m16n8k16<T>(sums[1], rows[step], b[2], b[3]);
    }
#pragma unroll
    for (int group = 0; group < 2; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = first + 8 * group + fragment_column() + i % 2;
        to[(fragment_row() + i / 2 * 8) * Tiles::kStride + column] = __float2half_rn(sums[group][i] * scale_);
      }
    }
  }

  // All products of the step, and their sum.
  __device__ void score(Accumulator<kKeys>& scores, uint32_t keys, int first_key) const {
    const int lane = threadIdx.x % 32, lowest = this->lowest(first_key);
    if (a_.position_keys != nullptr) {
      const int fresh = first_key == 0 ? kBand : stands(first_key) ? 0 : kKeys;
      for (int d = lowest; d < lowest + fresh; d += 16)
        multiply(queries_, ring_keys_, slot(d), by_row_ + 16 * warp_ * Tiles::kStride);
    }
    const bool flat = a_.row(lowest) == a_.row(lowest + kBand - 1);
    if (a_.position_queries != nullptr) {
      const int strip = warp_ % 2 * 16;  // two warps for the same keys take turns along the band
      Operand<kHead> operand;
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) {
        ptx::ldmatrix_x4(operand[step], keys + SwizzledBlock<kHead>::offset(strip + lane % 16, 2 * step + lane / 16));
      }
      for (int d = lowest + warp_ / 2 * 16; d < lowest + (flat ? 16 : kBand); d += 32)
        multiply(operand, ring_queries_, slot(d), by_key_ + strip * Tiles::kStride);
    }
    mma_scores<T, kHead, kKeys>(scores, queries_, keys);
    __syncthreads();
    if (flat) {
      look_up_flat(scores, slot(lowest));
    } else {
      look_up(scores, lowest);
    }
  }

  __device__ void look_up(Accumulator<kKeys>& scores, int lowest) const {
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = 8 * group + fragment_column() + i % 2, row = row_ + i / 2 * 8;
        const int at = slot(lowest + row - key + kKeys);
        float sum = scores[group][i] * scale_;
        if (a_.position_keys != nullptr) sum += __half2float(by_row_[row * Tiles::kStride + at]);
        if (a_.position_queries != nullptr) sum += __half2float(by_key_[key * Tiles::kStride + at]);
        scores[group][i] = sum;
      }
    }
  }

  // One distance, the lowest, stands for all.
  __device__ void look_up_flat(Accumulator<kKeys>& scores, int at) const {
    float by_row[2] = {};
    if (a_.position_keys != nullptr) {
#pragma unroll
      for (int r = 0; r < 2; ++r) by_row[r] = __half2float(by_row_[(row_ + 8 * r) * Tiles::kStride + at]);
    }
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int key = 8 * group + fragment_column() + i;
        const float by_key = a_.position_queries != nullptr ? __half2float(by_key_[key * Tiles::kStride + at]) : 0.f;
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          float& score = scores[group][2 * r + i];
          score = fmaf(score, scale_, by_row[r]) + by_key;
        }
      }
    }
  }

  const DisentangledArguments<T>& a_;
  const SequenceTile& tile_;
  const uint32_t stages_;                    // keys and values, in turns
  const uint32_t ring_keys_, ring_queries_;  // rows of position keys and queries by distance
  __half* const by_row_;                     // [kRows, kStride] what a distance adds to each query
  __half* const by_key_;                     // [kKeys, kStride] to each key
  const int warp_, row_;
  const float scale_;
  Operand<kHead> queries_;
};

// Grid: tiles of the longest sequence x sequences, heads.
template <typename T, int kHead, int kBytes>
__global__ void __launch_bounds__(DisentangledTiles<kHead>::kThreads)
    attention_disentangled_kernel(const __grid_constant__ DisentangledArguments<T> arguments, int tiles) {
  extern __shared__ __align__(128) unsigned char shared[];
  wait_then_release();
  const int sequence = blockIdx.x / tiles;
  const int begin = __ldg(arguments.attention.cu_seqlens + sequence);
  const int length = __ldg(arguments.attention.cu_seqlens + sequence + 1) - begin;
  const SequenceTile tile{begin, length, int(blockIdx.x) % tiles * DisentangledTiles<kHead>::kRows, int(blockIdx.y)};
  if (tile.row >= length) return;
  DisentangledTile<T, kHead, kBytes>(arguments, shared, tile).attend();
}

}  // namespace efft::cuda
