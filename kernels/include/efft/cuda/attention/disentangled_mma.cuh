// Disentangled attention with mma.sync, for elements of two bytes: any even head size up to 128, sm_80 and later.
#pragma once

#include <cuda_fp16.h>

#include "efft/cuda/attention/disentangled.cuh"
#include "efft/cuda/attention/load.cuh"
#include "efft/cuda/attention/mask.cuh"
#include "efft/cuda/attention/mma.cuh"
#include "efft/cuda/attention/softmax.cuh"

namespace efft::cuda {

// 32 keys a step keep a block within a quarter of a multiprocessor's shared memory at head size 64: nothing is copied
// ahead, other blocks work meanwhile.
template <int kHead>
struct DisentangledTiles {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = 32;
  static constexpr int kBand = kRows + kKeys;  // a multiple of 16 that holds all distances
  // Of the tiles that are looked up, in halves: the eight rows and four keys that a warp reads at once lie in 32 banks,
  // by rows (a row further is a column further, too) as by keys.
  static constexpr int kStride = kBand + 7;

  static constexpr int kKeyBytes = kKeys * kHead * 2;
  static constexpr int kBandBytes = kBand * kHead * 2;
  static constexpr int kLookedUp = (kRows + kKeys) * kStride * 2;
  static constexpr int shared_bytes() { return 2 * kKeyBytes + 2 * kBandBytes + kLookedUp + kBand * int(sizeof(int)); }
};

template <typename T, int kHead>
class DisentangledTile {
 public:
  using Tiles = DisentangledTiles<kHead>;
  static constexpr int kRows = Tiles::kRows;
  static constexpr int kKeys = Tiles::kKeys;

  __device__ DisentangledTile(const DisentangledArguments<T>& arguments, unsigned char* shared,
                              const SequenceTile& tile)
      : a_(arguments),
        tile_(tile),
        keys_(ptx::shared_address(shared)),
        by_row_(reinterpret_cast<__half*>(shared + 2 * Tiles::kKeyBytes + 2 * Tiles::kBandBytes)),
        by_key_(by_row_ + kRows * Tiles::kStride),
        columns_(reinterpret_cast<int*>(by_key_ + kKeys * Tiles::kStride)),
        warp_(threadIdx.x / 32),
        row_(16 * warp_ + fragment_row()),
        scale_(score_scale(arguments.attention.scale)) {}

  template <int kBytes>
  __device__ void attend() {
    const T* const rows[2] = {query(row_), query(row_ + 8)};
    load_queries<T, kHead>(queries_, rows, nullptr, a_.attention.head_size);
    OnlineSoftmax softmax(1.f);  // scores come with their scale
    Accumulator<kHead> output = {};
    for (int first_key = 0; first_key < tile_.length; first_key += kKeys) {
      const Band<kRows, kKeys> band(a_, tile_.row, first_key);
      load<kBytes>(band, first_key);
      Accumulator<kKeys> scores;
      score(scores, band);
      if (tile_.length - first_key < kKeys) mask_tail<kKeys>(scores, tile_.length - first_key);
      softmax.raise<kKeys, kHead>(scores, output);
      softmax.exponentiate<kKeys>(scores);
      Operand<kKeys> probabilities;
      to_operand<T, kKeys>(probabilities, scores);
      mma_output<T, kHead, kKeys>(output, probabilities, keys_ + Tiles::kKeyBytes);
      __syncthreads();  // the next turn loads into the same place
    }
    float inverse[2];
    softmax.normalizer(inverse);
    T* const to[2] = {result(row_), result(row_ + 8)};
    store_output<T, kHead>(output, inverse, a_.attention.value_bias(tile_.head), to, a_.attention.head_size);
  }

 private:
  __device__ bool exists(int row) const { return tile_.row + row < tile_.length; }
  __device__ const T* query(int row) const {
    return exists(row) ? a_.attention.query(tile_.begin + tile_.row + row, tile_.head) : nullptr;
  }
  __device__ T* result(int row) const {
    return exists(row) ? a_.attention.output(tile_.begin + tile_.row + row, tile_.head) : nullptr;
  }
  __device__ uint32_t band_keys() const { return keys_ + 2 * Tiles::kKeyBytes; }
  __device__ uint32_t band_queries() const { return band_keys() + Tiles::kBandBytes; }

  // Keys, values and the band's rows, all of the block.
  template <int kBytes>
  __device__ void load(const Band<kRows, kKeys>& band, int first_key) const {
    const auto& a = a_.attention;
    const int valid = tile_.length - first_key, begin = tile_.begin + first_key;
    load_block<T, kHead, kKeys, Tiles::kThreads, kBytes>(keys_, a.key(begin, tile_.head), a.width(), valid,
                                                         a.head_size);
    load_block<T, kHead, kKeys, Tiles::kThreads, kBytes>(keys_ + Tiles::kKeyBytes, a.value(begin, tile_.head),
                                                         a.width(), valid, a.head_size);
    load_band<kBytes>(band_keys(), a_.position_keys, band);
    load_band<kBytes>(band_queries(), a_.position_queries, band);
    ptx::cp_async_commit_group();
    if (threadIdx.x < band.kDistances) columns_[threadIdx.x] = band.column(a_, threadIdx.x);
    ptx::cp_async_wait_group<0>();
    __syncthreads();
  }

  template <int kBytes>
  __device__ void load_band(uint32_t to, const T* table, const Band<kRows, kKeys>& band) const {
    if (table == nullptr) return;
    load_rows_at<T, kHead, Tiles::kBand, Tiles::kThreads, kBytes>(
        to, [&](int column) { return a_.position(table, band.row(a_, column), tile_.head); }, band.columns,
        a_.attention.head_size);
  }

  // 16 rows times 16 of the band's, into a tile that is looked up, times the scale.
  __device__ void multiply(const Operand<kHead>& rows, uint32_t band, int first, __half* to) const {
    const int lane = threadIdx.x % 32;
    float sums[2][4] = {};
    const int row = first + lane / 16 * 8 + lane % 8;
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      uint32_t b[4];
      ptx::ldmatrix_x4(b, band + SwizzledBlock<kHead>::offset(row, 2 * step + lane / 8 % 2));
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
  __device__ void score(Accumulator<kKeys>& scores, const Band<kRows, kKeys>& band) const {
    const int lane = threadIdx.x % 32;
    if (a_.position_keys != nullptr) {
      for (int first = 0; first < band.columns; first += 16)
        multiply(queries_, band_keys(), first, by_row_ + 16 * warp_ * Tiles::kStride);
    }
    if (a_.position_queries != nullptr) {
      const int strip = warp_ % 2 * 16;  // two warps for the same keys take turns along the band
      Operand<kHead> keys;
#pragma unroll
      for (int step = 0; step < kHead / 16; ++step) {
        ptx::ldmatrix_x4(keys[step], keys_ + SwizzledBlock<kHead>::offset(strip + lane % 16, 2 * step + lane / 16));
      }
      for (int first = warp_ / 2 * 16; first < band.columns; first += 32)
        multiply(keys, band_queries(), first, by_key_ + strip * Tiles::kStride);
    }
    mma_scores<T, kHead, kKeys>(scores, queries_, keys_);
    __syncthreads();
    look_up(scores);
  }

  __device__ void look_up(Accumulator<kKeys>& scores) const {
#pragma unroll
    for (int group = 0; group < kKeys / 8; ++group) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = 8 * group + fragment_column() + i % 2, row = row_ + i / 2 * 8;
        const int column = columns_[row - key + kKeys - 1];
        float sum = scores[group][i] * scale_;
        if (a_.position_keys != nullptr) sum += __half2float(by_row_[row * Tiles::kStride + column]);
        if (a_.position_queries != nullptr) sum += __half2float(by_key_[key * Tiles::kStride + column]);
        scores[group][i] = sum;
      }
    }
  }

  const DisentangledArguments<T>& a_;
  const SequenceTile& tile_;
  const uint32_t keys_;   // keys, values, the band of position keys, that of position queries
  __half* const by_row_;  // [kRows, kStride] what the band adds to each query
  __half* const by_key_;  // [kKeys, kStride] to each key
  int* const columns_;    // of the band, by distance
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
  DisentangledTile<T, kHead>(arguments, shared, tile).template attend<kBytes>();
}

}  // namespace efft::cuda
