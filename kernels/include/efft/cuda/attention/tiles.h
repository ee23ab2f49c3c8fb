// Tile sizes of the attention kernels, in one place.
#pragma once

namespace efft::cuda::attention_tiles {

// Packed tiles (mma.sync): one warp holds 16 query rows, so that scores and output stay in registers at head size 128.
struct Packed {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRows = 16 * kWarps;
  static constexpr int kKeys = 64;
  static constexpr int kStages = 2;
  // Sequences up to this length share tiles where the ring, which gives each one its own, would need more
  // rounds than these (H200, us: 128 x 32 11.0 against 13.7, 512 x 16 21 against 52; but 32 x 32 8.8 against 5.6).
  static constexpr int kPackedLength = 32;
  static constexpr int kPackedRounds = 3;
};

// Ring (wgmma): a warpgroup holds 64 query rows and walks over 64 keys at a time, so that scores, output, queries and
// probabilities fit in 128 registers at head size 64 and two blocks of two warpgroups share a multiprocessor: while one
// warpgroup exponentiates, another multiplies.
// Rejected: a producer warp of its own (a ninth warp leaves 96 registers a thread, which spills); one block per tile
// (two thirds of the time went into finding tiles and waiting for the first data); one warpgroup a block throughout (no
// faster at 32 x 384, and reads keys and values from L2 twice as often); starting copies at the top of an iteration
// instead of behind the products' issue (5 to 10 % slower); blocks of three or four warpgroups, which read keys and
// values from L2 less often (no faster at 32 x 384, slower below).
template <int kHead>
struct Ring {
  static constexpr int kGroupThreads = 128;
  static constexpr int kGroupWarps = kGroupThreads / 32;
  static constexpr int kGroupRows = 64;
  static constexpr int kMaxGroups = 2;
  static constexpr int kMaxThreads = kMaxGroups * kGroupThreads;
  static constexpr int kKeys = 64;
  // The threads that start copies, in warps of their own so that neither holds up the other.
  static constexpr int kBlockFeeder = 0;
  static constexpr int kQueryFeeder = 64;
  static constexpr int kListedTiles = 8;                               // that a block looks up at a time
  static constexpr int kBlocksPerMultiprocessor = kHead > 64 ? 1 : 2;  // of the largest block

  // As many as fit beside each other in the registers and in 227 KiB of shared memory, three at least (see
  // Warpgroup::feed_block).
  static constexpr int stages(int groups) { return groups == 1 ? 3 : 5; }
  static constexpr int blocks_per_multiprocessor(int groups) { return kBlocksPerMultiprocessor + (groups == 1); }
};

// Resident (wgmma): keeps all keys and values of a sequence in shared memory, 64 a stage.
// Rejected: three warpgroups for the keys of the same rows (H200, 1 x 384, us: one 4.8, two 4.0, three 4.3). A second
// set of scores, so that their product runs beside the exponentials as well: the compiler then waits for every product.
template <int kHead>
struct Resident {
  static constexpr int kGroupThreads = 128;
  static constexpr int kGroupRows = 64;
  static constexpr int kKeys = 64;
  static constexpr int kMaxStages = kHead > 64 ? 6 : 12;
  // From here on two warpgroups divide the keys while there are multiprocessors to spare (128: no faster,
  // 384: 17 %).
  static constexpr int kDividedLength = 129;
  // That the registers have to suffice for.
  static constexpr int blocks_per_multiprocessor(int groups) { return (kHead > 64 ? 2 : 4) / groups; }
};

// Shared memory of a block, see attention/resident.cuh, which asserts that it is: queries, stages of keys and values,
// biases, barriers, and the origins and sums that warpgroups of keys hand over.
constexpr int resident_shared_bytes(int head, int row_groups, int key_groups, int stages) {
  const int block_bytes = 64 * 2 * head, max_stages = head > 64 ? 6 : 12;
  const int handed_over = key_groups > 1 ? (key_groups - 1) * 64 : 1;
  return (row_groups + 2 * stages) * block_bytes + 2 * 4 * head + 8 * (2 + max_stages) + 8 * handed_over;
}

// fp32 kernel: 16 x 16 threads, each with 4 query rows. 32 keys at head size 128 keep the block under the 99 KiB of
// shared memory that sm_86 and sm_89 grant.
template <int kHead>
struct Simt {
  static constexpr int kLanes = 16;
  static constexpr int kThreads = kLanes * kLanes;
  static constexpr int kRowsPerThread = 4;
  static constexpr int kRows = kLanes * kRowsPerThread;
  static constexpr int kKeysPerThread = kHead > 64 ? 2 : 4;
  static constexpr int kKeys = kLanes * kKeysPerThread;
};

}  // namespace efft::cuda::attention_tiles
