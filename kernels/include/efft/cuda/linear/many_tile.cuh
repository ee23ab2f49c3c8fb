// Tile shapes of the kernel for many rows.
#pragma once

#include "efft/cuda/linear/tensor_map.cuh"

namespace efft::cuda {

// What the two consumer warpgroups of a block make.
enum class Warpgroups {
  together,  // the upper and the lower half of the same tile
  in_turns,  // a tile each: one finishes its outputs while the other multiplies
};

// A block's tiles are kRows tokens by COLUMNS outputs.
template <int COLUMNS, Warpgroups WARPGROUPS>
struct ManyTile {
  static constexpr bool kInTurns = WARPGROUPS == Warpgroups::in_turns;
  static constexpr int kRows = 128;
  static constexpr int kColumns = COLUMNS;
  static constexpr int kGroups = 2;                        // consumer warpgroups
  static constexpr int kGroupHalves = kInTurns ? 2 : 1;    // times 64 rows of a tile are one warpgroup's
  static constexpr int kReaders = kInTurns ? 1 : kGroups;  // warpgroups that read a stage
  static constexpr int kThreads = 128 * (kGroups + 1);     // the last warpgroup copies

  // A stage takes one box, 128 bytes, of each row.
  static constexpr int kInputBytes = kRows * kBoxBytes;
  static constexpr int kWeightBytes = COLUMNS * kBoxBytes;
  static constexpr int kStageBytes = kInputBytes + kWeightBytes;

  // Outputs on their way from accumulators to rows: a warp's 16 rows, some columns at a time. Where all of a tile's
  // columns fit, the residual waits there, too.
  static constexpr int kStagedColumns = !kInTurns && COLUMNS <= 96 ? COLUMNS : 64;
  static constexpr int kWarpBytes = 16 * kStagedColumns * 2;

  static constexpr int kNormBytes = 8 * (kRows + COLUMNS) + 16;  // a TileNorm and its barrier

  static constexpr int kBlockBytes = 227 * 1024;  // shared memory that one block can have
  static constexpr int kStages = (kBlockBytes - kNormBytes - 4 * kGroups * kWarpBytes) / (kStageBytes + 16);
  static constexpr int kSharedBytes = kStages * (kStageBytes + 16) + kNormBytes + 4 * kGroups * kWarpBytes;
};

}  // namespace efft::cuda
