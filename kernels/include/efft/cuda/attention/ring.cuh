// Attention with wgmma and the tensor copy engine, for sm_90a and head sizes 32, 64 and 128. A block stays on its
// multiprocessor and takes one tile after another: one head of up to 128 rows of one sequence, 64 for each of its
// warpgroups. Its warps look tiles up together, and one thread each starts the copies of queries and of keys, ahead by
// the depth of the ring, so that the next tile's data arrive while this one's are multiplied.
#pragma once

#include "efft/cuda/attention/arguments.cuh"
#include "efft/cuda/attention/load.cuh"
#include "efft/cuda/attention/mask.cuh"
#include "efft/cuda/attention/pipeline.cuh"
#include "efft/cuda/attention/products.cuh"
#include "efft/cuda/attention/softmax.cuh"

namespace efft::cuda {

// What a block of the wgmma kernel knows without reading device memory.
struct RingGrid {
  int stages;  // of the ring
  int tiles;   // at most, of all heads
};

// Starts the copies, on behalf of all warpgroups. Each function is one thread's work.
template <typename T, int kHead, typename Score>
class Feeder {
 public:
  __device__ Feeder(const AttentionArguments<T, Score>& arguments, const AttentionMaps& maps,
                    const Pipeline<kHead>& pipeline)
      : arguments_(arguments), maps_(maps), pipeline_(pipeline) {}

  // As many keys and values of a new list as the ring holds, but for one, which the first of them feeds.
  __device__ void start_blocks() const {
    pipeline_.control.cursor.tile = 0;
    pipeline_.control.cursor.row = first_row(0);
    for (int stage = 1; stage < pipeline_.stages; ++stage) feed_block();
  }

  // The next block of keys and values, once its stage is free.
  __device__ void feed_block() const {
    FeedCursor cursor = pipeline_.control.cursor;
    if (cursor.tile == Tiles::kListedTiles) return;
    const SequenceTile tile = pipeline_.control.tiles[cursor.tile];
    if (tile.length == 0) return;
    const int stage = cursor.at.stage;
    const uint32_t full = pipeline_.stage_full(stage);
    ptx::mbarrier_wait(pipeline_.stage_free(stage), cursor.at.parity ^ 1);
    ptx::mbarrier_arrive_expect_tx(full, 2 * Layout::kBytes);
    ptx::cp_async_bulk_tensor(pipeline_.keys(stage), &maps_.keys_values, 0, tile.begin + cursor.row, 0, 0,
                              arguments_.kv_head(tile.head), full);
    cursor.at.advance(pipeline_.stages);
    cursor.row += Layout::kRows;
    if (cursor.row >= end_key(arguments_.score, tile, rows())) {
      cursor.row = first_row(cursor.tile + 1);
      ++cursor.tile;
    }
    pipeline_.control.cursor = cursor;
  }

  // The queries of the tile after the listed-th, once the warps have taken those of this one.
  __device__ void feed_queries(int listed, unsigned round) const {
    if (listed + 1 == Tiles::kListedTiles || pipeline_.control.tiles[listed + 1].length == 0) return;
    ptx::mbarrier_wait(pipeline_.tile_free(), round % 2);
    copy_queries(pipeline_.control.tiles[listed + 1], round + 1);
  }

  __device__ void copy_queries(const SequenceTile& tile, unsigned round) const {
    constexpr int kBiasBytes = kHead * int(sizeof(float));
    const float *const q_bias = arguments_.query_bias(tile.head), *const v_bias = arguments_.value_bias(tile.head);
    const int biases = (q_bias != nullptr) + (v_bias != nullptr);
    const uint32_t full = pipeline_.tile_full();
    ptx::mbarrier_arrive_expect_tx(full, pipeline_.groups * Layout::kBytes + biases * kBiasBytes);
    ptx::cp_async_bulk_tensor(pipeline_.queries(0, 0), &maps_.queries, 0, tile.begin + tile.row, 0, 0, tile.head, full);
    const uint32_t to = ptx::shared_address(pipeline_.control.biases[round % 2]);
    if (q_bias != nullptr) ptx::cp_async_bulk(to, q_bias, kBiasBytes, full);
    if (v_bias != nullptr) ptx::cp_async_bulk(to + kBiasBytes, v_bias, kBiasBytes, full);
  }

 private:
  using Tiles = attention_tiles::Ring<kHead>;
  using Layout = Panels<kHead>;

  __device__ int rows() const { return pipeline_.groups * Tiles::kGroupRows; }
  // Of the keys of a listed tile.
  __device__ int first_row(int listed) const {
    if constexpr (!Score::kNarrows) return 0;
    if (listed == Tiles::kListedTiles) return 0;
    return first_key(arguments_.score, pipeline_.control.tiles[listed], Layout::kRows);
  }

  const AttentionArguments<T, Score>& arguments_;
  const AttentionMaps& maps_;
  const Pipeline<kHead>& pipeline_;
};

// One warpgroup's share of the tiles: 64 query rows of each.
template <typename T, int kHead, typename Score>
class Warpgroup {
 public:
  __device__ Warpgroup(const AttentionArguments<T, Score>& arguments, const Pipeline<kHead>& pipeline,
                       const Feeder<T, kHead, Score>& feeder, int group)
      : arguments_(arguments), pipeline_(pipeline), feeder_(feeder), group_(group) {}

  // The tiles of the list; `round` counts all tiles so far.
  __device__ void run(unsigned& round) {
    for (int listed = 0; listed < Tiles::kListedTiles; ++listed, ++round) {
      SequenceTile tile = pipeline_.control.tiles[listed];
      tile.length = __shfl_sync(~0u, tile.length, 0);  // tells the compiler that loops take all lanes alike
      if (tile.length == 0) return;
      ptx::mbarrier_wait(pipeline_.tile_full(), round % 2);
      // Short sequences leave the last rows of a tile empty: the warpgroups take turns at them.
      rows_ = (group_ + round) & (pipeline_.groups - 1);
      if (tile.row + rows_ * kRows < tile.length) {
        attend(tile, listed, round);
      } else {
        skip(tile, listed, round);
      }
    }
  }

 private:
  using Tiles = attention_tiles::Ring<kHead>;
  using Layout = Panels<kHead>;
  static constexpr int kRows = Tiles::kGroupRows;
  static constexpr int kKeys = Tiles::kKeys;

  __device__ void release(uint32_t barrier) const {
    __syncwarp();
    if (threadIdx.x % 32 == 0) ptx::mbarrier_arrive(barrier);
  }

  // Waits for the data nevertheless: a stage may be freed again only after it has been filled again.
  __device__ void skip(const SequenceTile& tile, int listed, unsigned round) {
    release(pipeline_.tile_free());
    feed_queries(listed, round);
    pass(first_key(arguments_.score, tile, kKeys), keys_end(tile));
  }

  // Blocks of keys [key, end) that these rows do not see, or no rows do.
  __device__ void pass(int key, int end) {
    for (; key < end; key += kKeys) {
      ptx::mbarrier_wait(pipeline_.stage_full(at_.stage), at_.parity);
      feed_block();
      release(pipeline_.stage_free(at_.stage));
      at_.advance(pipeline_.stages);
    }
  }

  __device__ void take_queries(Operand<kHead>& queries, unsigned round) const {
    const int lane = threadIdx.x % 32;
    const int row = threadIdx.x / 32 % Tiles::kGroupWarps * 16 + lane % 16;
    constexpr int kSteps = Layout::kColumns / 16;
#pragma unroll
    for (int step = 0; step < kHead / 16; ++step) {
      const uint32_t panel = pipeline_.queries(rows_, step / kSteps);
      const int chunk = step % kSteps * 2 + lane / 16;
      ptx::ldmatrix_x4(queries[step], panel + SwizzledBlock<Layout::kColumns>::offset(row, chunk));
    }
    if (arguments_.q_bias != nullptr) add_bias<T, kHead>(queries, pipeline_.control.biases[round % 2][0]);
    release(pipeline_.tile_free());
  }

  // The rows behind the sequence's end belong to the next sequence or to nobody. Their probabilities are zero, but zero
  // times infinity is no number: every warpgroup that reads these values makes them zero as well.
  __device__ void clear_tail(int stage, int first_row) const {
    constexpr int kChunks = Layout::kRowBytes / 16;
    const uint32_t values = pipeline_.values(stage);
#pragma unroll 1
    for (int i = first_row * kChunks + threadIdx.x % Tiles::kGroupThreads; i < Layout::kRows * kChunks;
         i += Tiles::kGroupThreads) {
#pragma unroll
      for (int panel = 0; panel < Layout::kCount; ++panel) {
        ptx::store_zeros(values + panel * Layout::kPanelBytes + 16 * i);
      }
    }
    ptx::fence_proxy_async();
    ptx::barrier_sync(1 + group_, Tiles::kGroupThreads);
  }

  __device__ void attend(const SequenceTile& tile, int listed, unsigned round) {
    Operand<kHead> queries;
    take_queries(queries, round);
    // Of the tile's keys, those that these 64 rows see.
    const SequenceTile own = rows_from(tile, rows_ * kRows);
    const int first = first_key(arguments_.score, own, kKeys), end = end_key(arguments_.score, own, kRows);
    if constexpr (Score::kNarrows) pass(first_key(arguments_.score, tile, kKeys), first);
    OnlineSoftmax softmax(score_scale(arguments_.scale));
    Accumulator<kHead> output = {};
    Accumulator<kKeys> scores = {};
    Operand<kKeys> probabilities;
    ptx::mbarrier_wait(pipeline_.stage_full(at_.stage), at_.parity);
    ptx::pin(scores);
    wgmma_scores<T, kHead>(scores, queries, pipeline_.keys(at_.stage));
    int left = end - first;
    const int unseen = tile.length - end;  // of the sequence: the other warpgroup may see them
    if (left + unseen < kKeys) clear_tail(at_.stage, left + unseen);
    feed_queries(listed, round);
    ptx::wgmma_wait_group<0>();
    ptx::pin(scores);
    if (left < kKeys) mask_tail<kKeys>(scores, left);
    shape(scores, tile, end - left);
    softmax.begin<kKeys>(scores);
    softmax.exponentiate<kKeys>(scores);
    to_operand<T, kKeys>(probabilities, scores);
    RingStage now = at_;
    at_.advance(pipeline_.stages);
    for (left -= kKeys; left > 0; left -= kKeys) {
      // The next scores are ready before this output, whose product runs beside the exponentials.
      ptx::mbarrier_wait(pipeline_.stage_full(at_.stage), at_.parity);
      ptx::pin(scores);
      ptx::pin(output);
      wgmma_scores<T, kHead>(scores, queries, pipeline_.keys(at_.stage));
      wgmma_output<T, kHead>(output, probabilities, pipeline_.values(now.stage));
      if (left + unseen < kKeys) clear_tail(at_.stage, left + unseen);
      feed_block();
      ptx::wgmma_wait_group<1>();
      ptx::pin(scores);
      if (left < kKeys) mask_tail<kKeys>(scores, left);
      shape(scores, tile, end - left);
      float highest[2];
      softmax.largest<kKeys>(scores, highest);
      if (softmax.exceeds(highest)) {
        ptx::wgmma_wait_group<0>();
        ptx::pin(output);
        softmax.raise_to<kHead>(highest, output);
      }
      softmax.exponentiate<kKeys>(scores);
      ptx::wgmma_wait_group<0>();
      ptx::pin(output);
      release(pipeline_.stage_free(now.stage));
      to_operand<T, kKeys>(probabilities, scores);
      now = at_;
      at_.advance(pipeline_.stages);
    }
    ptx::pin(output);
    wgmma_output<T, kHead>(output, probabilities, pipeline_.values(now.stage));
    feed_block();
    ptx::wgmma_wait_group<0>();
    ptx::pin(output);
    release(pipeline_.stage_free(now.stage));
    if constexpr (Score::kNarrows) pass(first + (end - first + kKeys - 1) / kKeys * kKeys, keys_end(tile));
    store(output, softmax, tile, round);
  }

  __device__ int keys_end(const SequenceTile& tile) const {
    return end_key(arguments_.score, tile, pipeline_.groups * kRows);
  }

  __device__ int strip_row(const SequenceTile& tile) const {
    return tile.row + rows_ * kRows + threadIdx.x / 32 % Tiles::kGroupWarps * 16 + fragment_row();
  }

  __device__ void shape(Accumulator<kKeys>& scores, const SequenceTile& tile, int first_key) const {
    shape_scores<kKeys>(scores, arguments_.score, tile, strip_row(tile), first_key);
  }

  // In the shadow of the products: refills the stage that the block before this one has left. The ring must then hold
  // the block after next, hence three stages at least.
  __device__ void feed_block() const {
    if (threadIdx.x == Tiles::kBlockFeeder) feeder_.feed_block();
    __syncwarp();
  }

  __device__ void feed_queries(int listed, unsigned round) const {
    if (threadIdx.x == Tiles::kQueryFeeder) feeder_.feed_queries(listed, round);
    __syncwarp();
  }

  __device__ void store(const Accumulator<kHead>& output, const OnlineSoftmax& softmax, const SequenceTile& tile,
                        unsigned round) const {
    float inverse[2];
    softmax.normalizer(inverse);
    const int row = strip_row(tile);
    T* const first = arguments_.output(tile.begin + row, tile.head);
    T* const rows[2] = {row < tile.length ? first : nullptr,
                        row + 8 < tile.length ? first + 8 * arguments_.context() : nullptr};
    const float* bias = arguments_.v_bias != nullptr ? pipeline_.control.biases[round % 2][1] : nullptr;
    store_rows<T, kHead>(output, inverse, bias, rows, arguments_.out,
                         {arguments_.operand_inverse, arguments_.operand_zero});
  }

  const AttentionArguments<T, Score>& arguments_;
  const Pipeline<kHead>& pipeline_;
  const Feeder<T, kHead, Score>& feeder_;
  const int group_;
  int rows_ = 0;  // which 64 of the present tile
  RingStage at_{0, 0};
};

// The tiles of this block from the round-th on; fewer than the list holds end with one of length 0.
template <typename T, int kHead, typename Score>
__device__ inline void list_tiles(const AttentionArguments<T, Score>& arguments, const Pipeline<kHead>& pipeline,
                                  unsigned round, int tiles) {
  using Tiles = attention_tiles::Ring<kHead>;
  __shared__ int order[Tiles::kMaxThreads / 32][kSortedSequences];
  const int warp = threadIdx.x / 32;
  const int rows = blockDim.x / Tiles::kGroupThreads * Tiles::kGroupRows;
  for (int listed = warp; listed < Tiles::kListedTiles; listed += blockDim.x / 32) {
    const int index = snake_index(round + listed, blockIdx.x, gridDim.x);
    SequenceTile tile{0, 0, 0, 0};
    if (index < tiles) {
      tile = sequence_tile(arguments.cu_seqlens, arguments.batch, index / arguments.heads, rows, Tiles::kGroupRows,
                           order[warp]);
      tile.head = index % arguments.heads;
    }
    if (threadIdx.x % 32 == 0) pipeline.control.tiles[listed] = tile;
  }
}

template <typename T, int kHead, typename Score>
__global__ void __launch_bounds__(attention_tiles::Ring<kHead>::kMaxThreads,
                                  attention_tiles::Ring<kHead>::kBlocksPerMultiprocessor)
    attention_ring_kernel(const __grid_constant__ AttentionArguments<T, Score> arguments,
                          const __grid_constant__ AttentionMaps maps, const RingGrid grid) {
#if defined(EFFT_HOPPER)
  using Tiles = attention_tiles::Ring<kHead>;
  extern __shared__ unsigned char panels[];
  __shared__ alignas(16) typename Pipeline<kHead>::Control control;
  const int groups = blockDim.x / Tiles::kGroupThreads;
  const Pipeline<kHead> pipeline(panels, control, grid.stages, groups);
  if (threadIdx.x == 0) {
    ptx::prefetch_tensormap(&maps.queries);
    ptx::prefetch_tensormap(&maps.keys_values);
    pipeline.initialize(groups * Tiles::kGroupWarps);
  }
  const Feeder<T, kHead, Score> feeder(arguments, maps, pipeline);
  const int group = __shfl_sync(~0u, threadIdx.x / Tiles::kGroupThreads, 0);
  Warpgroup<T, kHead, Score> warpgroup(arguments, pipeline, feeder, group);
  unsigned round = 0;
  while (true) {
    list_tiles<T, kHead>(arguments, pipeline, round, grid.tiles);
    // The lengths are older than the kernel before this one (see attention.cuh), the queries are its output.
    if (round == 0) wait_then_release();
    __syncthreads();
    if (control.tiles[0].length == 0) return;
    if (threadIdx.x == Tiles::kQueryFeeder) feeder.copy_queries(control.tiles[0], round);
    if (threadIdx.x == Tiles::kBlockFeeder) feeder.start_blocks();
    __syncwarp();
    warpgroup.run(round);
    if (round % Tiles::kListedTiles != 0) return;
    __syncthreads();
  }
#endif
}

}  // namespace efft::cuda
