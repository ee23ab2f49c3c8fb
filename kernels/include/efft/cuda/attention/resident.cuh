// Attention with wgmma for sequences whose keys and values fit in shared memory at once: sm_90a, head sizes 32, 64 and
// 128. A block takes one head of 64 or 128 rows of one sequence and starts all copies as soon as its input is there; no
// stage is ever used twice. Warpgroups divide the rows, or the keys of the same rows, which makes the chain from the
// first score to the last shorter where few blocks have the chip to themselves.
#pragma once

#include "efft/cuda/attention/arguments.cuh"
#include "efft/cuda/attention/load.cuh"
#include "efft/cuda/attention/mask.cuh"
#include "efft/cuda/attention/pipeline.cuh"
#include "efft/cuda/attention/products.cuh"
#include "efft/cuda/attention/softmax.cuh"

namespace efft::cuda {

// Shared memory of a block: the queries of its rows, then 64 keys and values a stage, then what is small. Nothing is
// static: at six stages and 128 rows two blocks share a multiprocessor by a few hundred bytes.
template <int kHead, int kRowGroups, int kKeyGroups>
class Resident {
 public:
  using Tiles = attention_tiles::Resident<kHead>;
  using Layout = Panels<kHead>;
  static constexpr int kGroups = kRowGroups * kKeyGroups;
  static constexpr int kThreads = kGroups * Tiles::kGroupThreads;
  static constexpr int kRows = kRowGroups * Tiles::kGroupRows;

  struct Control {
    float biases[2][kHead];  // of query and value
    uint64_t queries_full;
    uint64_t stage_full[Tiles::kMaxStages];
    uint64_t given;  // every warpgroup of keys but the first has left its result
    // Origin and sum of each row for the keys of every warpgroup but the first.
    float2 rows[kKeyGroups > 1 ? (kKeyGroups - 1) * Tiles::kGroupRows : 1];
  };

  static constexpr int kAlignment = 1024;  // of the 128-byte swizzle
  static constexpr int panel_bytes(int stages) { return (kRowGroups + 2 * stages) * Layout::kBytes; }
  static constexpr int shared_bytes(int stages) { return panel_bytes(stages) + int(sizeof(Control)); }
  static_assert(shared_bytes(3) == attention_tiles::resident_shared_bytes(kHead, kRowGroups, kKeyGroups, 3));

  // `shared` is aligned to kAlignment.
  __device__ Resident(unsigned char* shared, int stages)
      : control(*reinterpret_cast<Control*>(shared + panel_bytes(stages))), queries_(ptx::shared_address(shared)) {}

  // By one thread, before anything else; for blocks [first, end) of keys.
  __device__ void initialize(int end, int first) const {
    ptx::mbarrier_init(queries_full(), 1);
    if constexpr (kKeyGroups > 1) {
      const int givers = min(kKeyGroups, end - first) - 1;
      if (givers > 0) ptx::mbarrier_init(given(), givers * Tiles::kGroupThreads);
    }
    for (int stage = first; stage < end; ++stage) ptx::mbarrier_init(stage_full(stage), 1);
    ptx::fence_mbarrier_init();
  }

  __device__ uint32_t queries(int group, int panel) const {
    return queries_ + (panel * kRowGroups + group) * Layout::kPanelBytes;
  }
  __device__ uint32_t keys(int stage) const { return queries_ + (kRowGroups + 2 * stage) * Layout::kBytes; }
  __device__ uint32_t values(int stage) const { return keys(stage) + Layout::kBytes; }
  __device__ uint32_t queries_full() const { return ptx::shared_address(&control.queries_full); }
  __device__ uint32_t given() const { return ptx::shared_address(&control.given); }
  __device__ uint32_t stage_full(int stage) const { return ptx::shared_address(&control.stage_full[stage]); }

  Control& control;

 private:
  uint32_t queries_;
};

// One warpgroup: 64 rows of the tile and every kKeyGroups-th block of 64 keys.
template <typename T, int kHead, int kRowGroups, int kKeyGroups, typename Score>
class ResidentGroup {
 public:
  using Shared = Resident<kHead, kRowGroups, kKeyGroups>;
  using Tiles = attention_tiles::Resident<kHead>;
  using Layout = Panels<kHead>;
  static constexpr int kKeys = Layout::kRows;

  __device__ ResidentGroup(const AttentionArguments<T, Score>& arguments, const Shared& shared,
                           const SequenceTile& tile, int group)
      : arguments_(arguments),
        shared_(shared),
        tile_(tile),
        blocks_((end_key(arguments.score, tile, Shared::kRows) + kKeys - 1) / kKeys),
        row_group_(group % kRowGroups),
        key_group_(group / kRowGroups),
        softmax_(score_scale(arguments.scale)) {}

  // By one thread of every warpgroup, each for its share of the blocks.
  __device__ void copy(const AttentionMaps& maps) const {
    if (row_group_ == 0 && key_group_ == 0) {
      ptx::mbarrier_arrive_expect_tx(shared_.queries_full(), kRowGroups * Layout::kBytes);
      ptx::cp_async_bulk_tensor(shared_.queries(0, 0), &maps.queries, 0, tile_.begin + tile_.row, 0, 0, tile_.head,
                                shared_.queries_full());
    }
    for (int block = first() + key_group_ + row_group_ * kKeyGroups; block < blocks_; block += Shared::kGroups) {
      const uint32_t full = shared_.stage_full(block);
      ptx::mbarrier_arrive_expect_tx(full, 2 * Layout::kBytes);
      ptx::cp_async_bulk_tensor(shared_.keys(block), &maps.keys_values, 0, tile_.begin + block * kKeys, 0, 0,
                                arguments_.kv_head(tile_.head), full);
    }
  }

  __device__ void attend() {
    const int end = own_end();
    if (own_first() + key_group_ >= end || tile_.row + row_group_ * Tiles::kGroupRows >= tile_.length) return;
    Operand<kHead> queries;
    ptx::mbarrier_wait(shared_.queries_full(), 0);
    take_queries(queries);
    Accumulator<kKeys> scores = {};
    Operand<kKeys> probabilities;
    int block = own_first() + key_group_;
    ptx::mbarrier_wait(shared_.stage_full(block), 0);
    ptx::pin(scores);
    wgmma_scores<T, kHead>(scores, queries, shared_.keys(block));
    clear_tail(block);
    ptx::wgmma_wait_group<0>();
    ptx::pin(scores);
    mask_block(scores, block);
    softmax_.begin<kKeys>(scores);
    softmax_.exponentiate<kKeys>(scores);
    to_operand<T, kKeys>(probabilities, scores);
    for (int next = block + kKeyGroups; next < end; next += kKeyGroups) {
      // The next scores are ready before this output, whose product runs beside the exponentials.
      ptx::mbarrier_wait(shared_.stage_full(next), 0);
      ptx::pin(scores);
      ptx::pin(output_);
      wgmma_scores<T, kHead>(scores, queries, shared_.keys(next));
      wgmma_output<T, kHead>(output_, probabilities, shared_.values(block));
      clear_tail(next);
      ptx::wgmma_wait_group<1>();
      ptx::pin(scores);
      mask_block(scores, next);
      float largest[2];
      softmax_.largest<kKeys>(scores, largest);
      if (softmax_.exceeds(largest)) {
        ptx::wgmma_wait_group<0>();
        ptx::pin(output_);
        softmax_.raise_to<kHead>(largest, output_);
      }
      softmax_.exponentiate<kKeys>(scores);
      ptx::wgmma_wait_group<0>();
      ptx::pin(output_);
      to_operand<T, kKeys>(probabilities, scores);
      block = next;
    }
    ptx::pin(output_);
    wgmma_output<T, kHead>(output_, probabilities, shared_.values(block));
    ptx::wgmma_wait_group<0>();
    ptx::pin(output_);
  }

  // The results of all warpgroups with the same rows in one; the first one stores. It waits at an mbarrier where every
  // giving thread arrives: racecheck (CUDA 13.0) follows that, but reports hazards across a barrier of the whole block
  // (bar.sync, __syncthreads) and across one arrival a warp.
  __device__ void finish() {
    softmax_.total();
    if constexpr (kKeyGroups > 1) {
      const int working = min(kKeyGroups, blocks_ - first());
      if (key_group_ > 0) {
        if (key_group_ < working) give();
        return;
      }
      if (working > 1) ptx::mbarrier_wait(shared_.given(), 0);
      for (int other = 1; other < working; ++other) take(other);
    }
    store();
  }

 private:
  // The keys that some row of the tile sees: the first block of 64, and the end.
  __device__ int first() const { return first_key(arguments_.score, tile_, kKeys) / kKeys; }
  // Of the keys that this warpgroup's rows see: fewer than the tile's where warpgroups divide its rows.
  __device__ SequenceTile own() const { return rows_from(tile_, row_group_ * Tiles::kGroupRows); }
  __device__ int own_first() const { return first_key(arguments_.score, own(), kKeys) / kKeys; }
  __device__ int own_end() const {
    if constexpr (!Score::kNarrows) return blocks_;
    return (end_key(arguments_.score, own(), Tiles::kGroupRows) + kKeys - 1) / kKeys;
  }
  __device__ int end() const { return end_key(arguments_.score, tile_, Shared::kRows); }
  __device__ int lane_in_group() const { return threadIdx.x % Tiles::kGroupThreads; }
  __device__ int strip_row() const { return lane_in_group() / 32 * 16 + fragment_row(); }

  __device__ void take_queries(Operand<kHead>& queries) const {
    const int lane = threadIdx.x % 32;
    const int row = lane_in_group() / 32 * 16 + lane % 16;
    constexpr int kSteps = Layout::kColumns / 16;
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      const uint32_t panel = shared_.queries(row_group_, step / kSteps);
      const int chunk = step % kSteps * 2 + lane / 16;
      ptx::ldmatrix_x4(queries[step], panel + SwizzledBlock<Layout::kColumns>::offset(row, chunk));
    }
    if (arguments_.q_bias != nullptr) add_bias<T, kHead>(queries, shared_.control.biases[0]);
  }

  __device__ void mask_block(Accumulator<kKeys>& scores, int block) const {
    const int left = end() - block * kKeys;
    if (left < kKeys) mask_tail<kKeys>(scores, left);
    shape_scores<kKeys>(scores, arguments_.score, tile_, tile_.row + row_group_ * Tiles::kGroupRows + strip_row(),
                        block * kKeys);
  }

  // The rows behind the sequence's end belong to the next sequence or to nobody. Their probabilities are zero, but zero
  // times infinity is not: every warpgroup that reads these values makes them zero as well.
  __device__ void clear_tail(int block) const {
    const int left = end() - block * kKeys;
    if (left >= kKeys) return;
    constexpr int kChunks = Layout::kRowBytes / 16;
    const uint32_t values = shared_.values(block);
#pragma unroll 1
    for (int i = left * kChunks + lane_in_group(); i < kKeys * kChunks; i += Tiles::kGroupThreads) {
#pragma unroll
      for (int panel = 0; panel < Layout::kCount; ++panel) {
        ptx::store_zeros(values + panel * Layout::kPanelBytes + 16 * i);
      }
    }
    ptx::fence_proxy_async();
    sync_group();
  }

  __device__ void sync_group() const {
    ptx::barrier_sync(1 + key_group_ * kRowGroups + row_group_, Tiles::kGroupThreads);
  }

  __device__ float2* rows_of(int key_group) const { return shared_.control.rows + (key_group - 1) * Tiles::kGroupRows; }

  // This warpgroup's output, origins and sums for the first one, in the stage that it read first.
  __device__ void give() const {
    sync_group();  // no warp's product reads the stage any more
    const uint32_t slot = shared_.keys(first() + key_group_) + 16 * lane_in_group();
#pragma unroll
    for (int group = 0; group < kHead / 8; ++group) {
      ptx::store_shared(slot + group * Tiles::kGroupThreads * 16, output_[group]);
    }
    if (threadIdx.x % 4 == 0) {
      float2* const rows = rows_of(key_group_);
#pragma unroll
      for (int r = 0; r < 2; ++r) rows[strip_row() + 8 * r] = make_float2(softmax_.origin(r), softmax_.sum(r));
    }
    ptx::mbarrier_arrive(shared_.given());
  }

  __device__ void take(int other) {
    float factor[2];
    const float2* const rows = rows_of(other);
    softmax_.merge<kHead>(rows[strip_row()], rows[strip_row() + 8], output_, factor);
    const uint32_t slot = shared_.keys(first() + other) + 16 * lane_in_group();
#pragma unroll
    for (int group = 0; group < kHead / 8; ++group) {
      float part[4];
      ptx::load_shared(part, slot + group * Tiles::kGroupThreads * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) output_[group][i] = fmaf(part[i], factor[i / 2], output_[group][i]);
    }
  }

  __device__ void store() const {
    const float inverse[2] = {__fdividef(1.f, softmax_.sum(0)), __fdividef(1.f, softmax_.sum(1))};
    const int row = tile_.row + row_group_ * Tiles::kGroupRows + strip_row();
    T* const first = arguments_.output(tile_.begin + row, tile_.head);
    T* const rows[2] = {row < tile_.length ? first : nullptr,
                        row + 8 < tile_.length ? first + 8 * arguments_.context() : nullptr};
    const float* bias = arguments_.v_bias != nullptr ? shared_.control.biases[1] : nullptr;
    store_rows<T, kHead>(output_, inverse, bias, rows, arguments_.out,
                         {arguments_.operand_inverse, arguments_.operand_zero});
  }

  const AttentionArguments<T, Score>& arguments_;
  const Shared& shared_;
  const SequenceTile& tile_;
  const int blocks_;  // of 64 keys, their end
  const int row_group_;
  const int key_group_;
  OnlineSoftmax softmax_;
  Accumulator<kHead> output_ = {};
};

// stages: 64 keys each, enough for the longest sequence and at least one for every warpgroup of keys.
// Grid: tiles of the longest sequence x heads x sequences.
template <typename T, int kHead, int kRowGroups, int kKeyGroups, typename Score>
__global__ void __launch_bounds__(
    Resident<kHead, kRowGroups, kKeyGroups>::kThreads,
    attention_tiles::Resident<kHead>::blocks_per_multiprocessor(Resident<kHead, kRowGroups, kKeyGroups>::kGroups))
    attention_resident_kernel(const __grid_constant__ AttentionArguments<T, Score> arguments,
                              const __grid_constant__ AttentionMaps maps, const int stages) {
#if defined(EFFT_HOPPER)
  using Shared = Resident<kHead, kRowGroups, kKeyGroups>;
  using Tiles = attention_tiles::Resident<kHead>;
  extern __shared__ __align__(Shared::kAlignment) unsigned char resident_bytes[];
  const Shared shared(resident_bytes, stages);
  const int sequence = blockIdx.z;
  const int begin = __ldg(arguments.cu_seqlens + sequence);
  const int length = __ldg(arguments.cu_seqlens + sequence + 1) - begin;
  const SequenceTile tile{begin, length, int(blockIdx.x) * Shared::kRows, int(blockIdx.y)};
  if (tile.row >= length) {
    // What follows relies on this kernel not to end before the one in front of it, even where there are no tokens.
    if (blockIdx.x + blockIdx.z == 0) wait_then_release();
    return;
  }
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(&maps.queries);
    ptx::prefetch_tensormap(&maps.keys_values);
    const int end = end_key(arguments.score, tile, Shared::kRows);
    shared.initialize((end + Tiles::kKeys - 1) / Tiles::kKeys,
                      first_key(arguments.score, tile, Tiles::kKeys) / Tiles::kKeys);
  }
  if (threadIdx.x < kHead) {
    const float *const q_bias = arguments.query_bias(tile.head), *const v_bias = arguments.value_bias(tile.head);
    if (q_bias != nullptr) shared.control.biases[0][threadIdx.x] = __ldg(q_bias + threadIdx.x);
    if (v_bias != nullptr) shared.control.biases[1][threadIdx.x] = __ldg(v_bias + threadIdx.x);
  }
  const int group = __shfl_sync(~0u, threadIdx.x / Tiles::kGroupThreads, 0);
  ResidentGroup<T, kHead, kRowGroups, kKeyGroups, Score> warpgroup(arguments, shared, tile, group);
  __syncthreads();
  // The lengths are older than the kernel before this one (see attention.cuh), the queries are its output.
  wait_then_release();
  if (threadIdx.x % Tiles::kGroupThreads == 0) warpgroup.copy(maps);
  __syncwarp();
  warpgroup.attend();
  warpgroup.finish();
#endif
}

}  // namespace efft::cuda
