// What travels through shared memory in attention/ring.cuh: a ring of stages with keys and values, the next tile's
// queries and biases, and the list of tiles.
#pragma once

#include "efft/cuda/attention/lengths.cuh"
#include "efft/cuda/attention/tiles.h"
#include "efft/cuda/launch.cuh"
#include "efft/cuda/ptx/barrier.cuh"
#include "efft/cuda/ptx/copy.cuh"
#include "efft/cuda/ptx/wgmma.cuh"

namespace efft::cuda {

// 64 rows of queries, keys or values in shared memory as the copy engine writes them: panels of up to 64 columns (128
// bytes, the widest swizzle), each row of a panel contiguous.
template <int kHead>
struct Panels {
  static constexpr int kRows = attention_tiles::Ring<kHead>::kKeys;
  static constexpr int kColumns = kHead < 64 ? kHead : 64;
  static constexpr int kCount = kHead / kColumns;
  static constexpr int kRowBytes = 2 * kColumns;
  static constexpr int kPanelBytes = kRows * kRowBytes;
  static constexpr int kBytes = kCount * kPanelBytes;

  // Matrix descriptor (PTX ISA, "Matrix descriptor") of a part of the panels that starts `offset` bytes in. Addresses
  // and strides count 16 bytes. Both operands advance 8 rows per group; the distance between panels matters only for
  // values wider than one.
  __device__ static uint64_t descriptor(uint32_t panels, uint32_t offset) {
    constexpr uint32_t kSwizzle = kRowBytes == 128 ? 1 : 2;  // of 128 or 64 bytes
    constexpr uint32_t kGroupStride = 8 * kRowBytes / 16;
    constexpr uint32_t kPanelStride = kPanelBytes / 16;
    const uint32_t low = panels / 16 + (kPanelStride << 16 | offset / 16);
    return uint64_t(kSwizzle << 30 | kGroupStride) << 32 | low;
  }
  // Where 16 columns of all keys start, a step of queries times keys.
  __device__ static constexpr uint32_t key_step(int step) {
    constexpr int kSteps = kColumns / 16;
    return step / kSteps * kPanelBytes + step % kSteps * 32;
  }
  // Where 16 rows start, a step of probabilities times values.
  __device__ static constexpr uint32_t value_step(int step) { return 16 * step * kRowBytes; }
};

// A place in the ring: which stage, and the parity of its current use. Kept and advanced, since finding it from a
// block's number takes a division by a number of stages that is not a constant.
struct RingStage {
  int stage;
  uint32_t parity;

  __device__ void advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The views of qkv that the copy engine reads.
struct AttentionMaps {
  CUtensorMap queries;
  CUtensorMap keys_values;
};

// Where the thread that starts the copies of keys and values has come to. In shared memory, since registers are short.
struct alignas(16) FeedCursor {
  int tile;  // in the list
  int row;   // next one of the tile's sequence to copy the key and value of
  RingStage at;
};

template <int kHead>
class Pipeline {
 public:
  using Tiles = attention_tiles::Ring<kHead>;
  using Layout = Panels<kHead>;

  // What is small and needs no alignment to the swizzle.
  struct Control {
    float biases[2][2][kHead];  // of query and value; the value's is read last, when the next tile's are here already
    uint64_t tile_full;         // queries and biases are there
    uint64_t tile_free;         // every warp has taken its queries
    uint64_t stage_full[Tiles::stages(Tiles::kMaxGroups)];
    uint64_t stage_free[Tiles::stages(Tiles::kMaxGroups)];
    SequenceTile tiles[Tiles::kListedTiles];
    FeedCursor cursor;
  };

  static constexpr int shared_bytes(int stages, int groups) {
    return kAlignment + (groups + 2 * stages) * Layout::kBytes;
  }

  __device__ Pipeline(unsigned char* panels, Control& control, int stages, int groups)
      : control(control), stages(stages), groups(groups) {
    queries_ = (ptx::shared_address(panels) + kAlignment - 1) / kAlignment * kAlignment;
    ring_ = queries_ + groups * Layout::kBytes;
  }

  // By one thread, before anything else; `readers` is the number of warps that consume.
  __device__ void initialize(int readers) const {
    ptx::mbarrier_init(tile_full(), 1);
    ptx::mbarrier_init(tile_free(), readers);
    for (int stage = 0; stage < stages; ++stage) {
      ptx::mbarrier_init(stage_full(stage), 1);
      ptx::mbarrier_init(stage_free(stage), readers);
    }
    ptx::fence_mbarrier_init();
    control.cursor.at = RingStage{0, 0};
  }

  // 64 rows of a panel; the queries of all warpgroups make up a panel, since they come in one copy.
  __device__ uint32_t queries(int group, int panel) const {
    return queries_ + (panel * groups + group) * Layout::kPanelBytes;
  }
  __device__ uint32_t keys(int stage) const { return ring_ + stage * 2 * Layout::kBytes; }
  __device__ uint32_t values(int stage) const { return keys(stage) + Layout::kBytes; }

  __device__ uint32_t tile_full() const { return ptx::shared_address(&control.tile_full); }
  __device__ uint32_t tile_free() const { return ptx::shared_address(&control.tile_free); }
  __device__ uint32_t stage_full(int stage) const { return ptx::shared_address(&control.stage_full[stage]); }
  __device__ uint32_t stage_free(int stage) const { return ptx::shared_address(&control.stage_free[stage]); }

  Control& control;
  const int stages;
  const int groups;

 private:
  static constexpr int kAlignment = 1024;  // of the 128-byte swizzle

  uint32_t queries_;
  uint32_t ring_;
};

}  // namespace efft::cuda
