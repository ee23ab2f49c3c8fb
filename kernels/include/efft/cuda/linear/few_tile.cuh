// Tile shapes of the kernel for few rows.
#pragma once

#include "efft/cuda/linear/tensor_map.cuh"

namespace efft::cuda {

constexpr int kMultiprocessorBytes =
    228 * 1024;  // shared memory, of which each block costs 1 KiB more than it asks for

// A block makes ROWS tokens by COLUMNS outputs. The matrix unit always multiplies 64 rows: with ROWS = 32 the others
// are whatever follows in shared memory, and are dropped. COLUMN_GROUPS warpgroups share the columns; K_GROUPS take
// turns at the stages and add up at the end, which halves a short product's chain of dependent steps. BLOCKS such
// blocks fit on a multiprocessor: with two, the next kernel's can fetch their weights while this one's still compute;
// wide tiles need the memory for more stages.
//
// SPLITS blocks of a cluster share one tile: each multiplies its part of K, sends every other block that one's share of
// the rows, and finishes its own.
template <int ROWS, int COLUMNS, int COLUMN_GROUPS, int K_GROUPS, int SPLITS, int BLOCKS>
struct FewTile {
  static constexpr int kRows = ROWS;
  static constexpr int kColumns = COLUMNS;
  static constexpr int kColumnGroups = COLUMN_GROUPS;
  static constexpr int kKGroups = K_GROUPS;
  static constexpr int kSplits = SPLITS;
  static constexpr int kRowGroups = ROWS > 64 ? ROWS / 64 : 1;  // warpgroups along the rows
  static constexpr int kShareRows = ROWS / SPLITS;              // that a block finishes
  static constexpr int kParts = SPLITS * K_GROUPS;              // sums that add up to an output
  static_assert(ROWS % SPLITS == 0);
  static constexpr int kGroupColumns = COLUMNS / COLUMN_GROUPS;  // of one warpgroup
  static constexpr int kConsumers = 128 * kRowGroups * COLUMN_GROUPS * K_GROUPS;
  static constexpr int kProducers = 64;  // a warp for the weights, one for the input

  static constexpr int kBlocks = BLOCKS;

  // Narrow tiles take two boxes a stage: half as many barriers to pass.
  static constexpr int kBoxes = COLUMNS <= 32 ? 2 : 1;
  static constexpr int kStageDepth = kBoxes * kBoxBytes;  // of K, in bytes
  static constexpr int kInputBoxBytes = ROWS * kBoxBytes;
  static constexpr int kWeightBoxBytes = COLUMNS * kBoxBytes;
  static constexpr int kInputBytes = kBoxes * kInputBoxBytes;
  static constexpr int kStageBytes = kInputBytes + kBoxes * kWeightBoxBytes;

  // The sums lie over the stages, but those that other blocks send come too early for that. Rows start 8 or 24 banks
  // apart, so that neither the accumulators' 8-byte nor the epilogue's 16-byte accesses conflict.
  static constexpr int kSumsPitch = COLUMNS % 16 == 0 ? COLUMNS + 8 : COLUMNS;
  static constexpr int kSumsBytes = K_GROUPS * ROWS * kSumsPitch * 4;
  // Besides the stages: four vectors along the columns, a scale and a shift for each row, what the matrix unit reads
  // behind the last rows, and in split tiles a barrier (16 bytes, for alignment) and the sums.
  static constexpr int kOtherBytes =
      4 * COLUMNS * 4 + ROWS * 8 + (ROWS < 64 ? (64 - ROWS) * kBoxBytes : 0) + (SPLITS > 1 ? 16 + kSumsBytes : 0);
  static constexpr int kStagesThatFit = (kMultiprocessorBytes / kBlocks - 1024 - kOtherBytes) / (kStageBytes + 16);
  // A whole number of stages for each K group: then a group meets every use of its stages, and a barrier's parity is
  // enough to tell this use from the one before.
  static constexpr int kStages = (kStagesThatFit < 16 ? kStagesThatFit : 16) / K_GROUPS * K_GROUPS;
  static constexpr int kSharedBytes = kStages * (kStageBytes + 16) + kOtherBytes;

  static_assert(SPLITS > 1 || kSumsBytes <= kStages * kStageBytes, "sums fit over the stages");
};

// The tiles that are compiled in. Narrow ones halve the K loop between two warpgroups; wide ones share the columns.
template <typename... Tiles>
struct TileList {};
using FewTiles = TileList<FewTile<32, 8, 1, 2, 1, 2>, FewTile<32, 24, 1, 2, 1, 2>, FewTile<32, 32, 1, 2, 1, 2>,
                          FewTile<32, 24, 1, 1, 4, 2>, FewTile<32, 32, 1, 1, 4, 2>, FewTile<64, 8, 1, 2, 1, 2>,
                          FewTile<64, 32, 1, 2, 1, 2>, FewTile<64, 48, 1, 2, 1, 1>, FewTile<64, 64, 1, 2, 1, 1>,
                          FewTile<64, 96, 2, 1, 1, 1>, FewTile<64, 128, 2, 1, 1, 1>, FewTile<64, 192, 2, 1, 1, 1>,
                          FewTile<64, 32, 1, 1, 4, 2>, FewTile<64, 48, 1, 1, 4, 2>, FewTile<64, 96, 1, 1, 2, 1>,
                          FewTile<128, 96, 1, 1, 4, 1>, FewTile<128, 128, 1, 1, 4, 1>>;

}  // namespace efft::cuda
