// Tile shapes of the Hopper linear kernel and which one a problem gets.
#pragma once

namespace efft::cuda {

constexpr int kLinearDepth = 64;  // elements of K in a box of the copy engine: one 128-byte swizzled row
constexpr int kMultiprocessorBytes =
    228 * 1024;  // shared memory, of which each block costs 1 KiB more than it asks for

// A block makes ROWS tokens by COLUMNS outputs. The matrix unit always multiplies 64 rows: with ROWS = 32 the others
// are whatever follows in shared memory, and are dropped. COLUMN_GROUPS warpgroups share the columns; K_GROUPS take
// turns at the stages and add up at the end, which halves a short product's chain of dependent steps. Blocks of a
// cluster read each other's tiles by multicast.
template <int ROWS, int COLUMNS, int COLUMN_GROUPS, int K_GROUPS>
struct LinearTile {
  static constexpr int kRows = ROWS;
  static constexpr int kColumns = COLUMNS;
  static constexpr int kColumnGroups = COLUMN_GROUPS;
  static constexpr int kKGroups = K_GROUPS;
  static constexpr int kGroupColumns = COLUMNS / COLUMN_GROUPS;  // of one warpgroup
  static constexpr int kConsumers = 128 * COLUMN_GROUPS * K_GROUPS;
  static constexpr int kProducers = 64;  // a warp for the weights, one for the input

  // Narrow tiles: two blocks fit on a multiprocessor, so that the next kernel's blocks can fetch their weights while
  // this one's still compute. Wider ones need the memory for more stages.
  static constexpr int kBlocks = COLUMNS <= 32 ? 2 : 1;
  // Where rows are normalised: warps that take their moments, several lanes a row.
  static constexpr int kMomentThreads = kBlocks == 2 ? 128 : 256;
  static constexpr int kMomentLanes = kMomentThreads / ROWS;

  // Narrow tiles take two boxes a stage: half as many barriers to pass.
  static constexpr int kBoxes = COLUMNS <= 32 ? 2 : 1;
  static constexpr int kStageDepth = kBoxes * kLinearDepth;
  static constexpr int kInputBoxBytes = ROWS * 128;
  static constexpr int kWeightBoxBytes = COLUMNS * 128;
  static constexpr int kInputBytes = kBoxes * kInputBoxBytes;
  static constexpr int kStageBytes = kInputBytes + kBoxes * kWeightBoxBytes;

  // Besides the stages: four vectors along the columns, a scale and a shift for each row, and what the matrix unit
  // reads behind the last rows.
  static constexpr int kOtherBytes = 4 * COLUMNS * 4 + ROWS * 8 + (64 - ROWS) * 128;
  static constexpr int kStagesThatFit = (kMultiprocessorBytes / kBlocks - 1024 - kOtherBytes) / (kStageBytes + 16);
  // A whole number of stages for each K group: then a group meets every use of its stages, and a barrier's parity is
  // enough to tell this use from the one before.
  static constexpr int kStages = (kStagesThatFit < 16 ? kStagesThatFit : 16) / K_GROUPS * K_GROUPS;
  static constexpr int kSharedBytes = kStages * (kStageBytes + 16) + kOtherBytes;

  // The finished sums lie over the stages. Rows start 8 or 24 banks apart, so that neither the accumulators' 8-byte nor
  // the epilogue's 16-byte accesses conflict.
  static constexpr int kSumsPitch = COLUMNS % 16 == 0 ? COLUMNS + 8 : COLUMNS;
  static_assert(K_GROUPS * ROWS * kSumsPitch * 4 <= kStages * kStageBytes, "sums fit over the stages");
};

// Narrow tiles halve the K loop between two warpgroups. Wide ones share the columns among several, for the epilogue's
// sake: it is as long as the products, and needs warps to hide its latencies.
template <int ROWS, int COLUMNS>
using SmallLinearTile = LinearTile<ROWS, COLUMNS,
                                   (COLUMNS <= 64   ? 1
                                    : COLUMNS <= 96 ? 2
                                                    : 4),
                                   (COLUMNS <= 64 ? 2 : 1)>;

// Shape of a cluster in blocks: blocks along the rows share tiles of w, blocks along the columns tiles of x.
struct ClusterShape {
  int rows, columns;
};

struct LinearChoice {
  int rows, columns;
  ClusterShape cluster;
};

// The widest tile that still gives about every multiprocessor one.
inline LinearChoice choose_linear(int expected_tokens, int n, int k) {
  constexpr int kWidths[] = {192, 128, 96, 64, 48, 32, 24, 16, 8}, kEnoughTiles = 96, kLongProduct = 2048;
  const int row_tiles = (expected_tokens + 63) / 64, rows = expected_tokens <= 32 ? 32 : 64;
  // Long and narrow: the blocks would read the whole input 96 times over. Elsewhere clusters gained nothing: their
  // blocks wait for each other.
  const ClusterShape cluster = {1, row_tiles == 1 && k >= kLongProduct ? 4 : 1};
  for (const int width : kWidths)
    if ((rows == 64 || width <= 32) && n % (width * cluster.columns) == 0 && row_tiles * (n / width) >= kEnoughTiles)
      return {rows, width, cluster};
  return {rows, 8, {1, 1}};
}

}  // namespace efft::cuda
