// Tile shapes of the Hopper linear kernel and which one a problem gets.
#pragma once

namespace efft::cuda {

constexpr int kLinearDepth = 64;  // elements of K in a box of the copy engine: one 128-byte swizzled row
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
struct LinearTile {
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
  static constexpr int kStageDepth = kBoxes * kLinearDepth;
  static constexpr int kInputBoxBytes = ROWS * 128;
  static constexpr int kWeightBoxBytes = COLUMNS * 128;
  static constexpr int kInputBytes = kBoxes * kInputBoxBytes;
  static constexpr int kStageBytes = kInputBytes + kBoxes * kWeightBoxBytes;

  // The sums lie over the stages, but those that other blocks send come too early for that. Rows start 8 or 24 banks
  // apart, so that neither the accumulators' 8-byte nor the epilogue's 16-byte accesses conflict.
  static constexpr int kSumsPitch = COLUMNS % 16 == 0 ? COLUMNS + 8 : COLUMNS;
  static constexpr int kSumsBytes = K_GROUPS * ROWS * kSumsPitch * 4;
  // Besides the stages: four vectors along the columns, a scale and a shift for each row, what the matrix unit reads
  // behind the last rows, and in split tiles a barrier (16 bytes, for alignment) and the sums.
  static constexpr int kOtherBytes =
      4 * COLUMNS * 4 + ROWS * 8 + (ROWS < 64 ? (64 - ROWS) * 128 : 0) + (SPLITS > 1 ? 16 + kSumsBytes : 0);
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
using LinearTiles =
    TileList<LinearTile<32, 8, 1, 2, 1, 2>, LinearTile<32, 24, 1, 2, 1, 2>, LinearTile<32, 32, 1, 2, 1, 2>,
             LinearTile<32, 24, 1, 1, 4, 2>, LinearTile<32, 32, 1, 1, 4, 2>, LinearTile<64, 8, 1, 2, 1, 2>,
             LinearTile<64, 32, 1, 2, 1, 2>, LinearTile<64, 48, 1, 2, 1, 1>, LinearTile<64, 64, 1, 2, 1, 1>,
             LinearTile<64, 96, 2, 1, 1, 1>, LinearTile<64, 128, 2, 1, 1, 1>, LinearTile<64, 192, 2, 1, 1, 1>,
             LinearTile<64, 32, 1, 1, 4, 2>, LinearTile<64, 48, 1, 1, 4, 2>, LinearTile<64, 96, 1, 1, 2, 1>,
             LinearTile<128, 96, 1, 1, 4, 1>, LinearTile<128, 128, 1, 1, 4, 1>>;

struct LinearChoice {
  int rows, columns;
  int splits;   // blocks that share a tile, each with a part of K
  int sharers;  // or tiles along the rows that share copies of the weights: the cluster's other use
};

struct LinearCandidate {
  LinearChoice choice;
  int least, most;  // blocks: enough to be worth it, and not so many that clusters would wait for each other
};

// In the order of their preference, as the time of whole layers of BERT-base on an H200 has it
// (kernels/lab/small_sweep.cu). The last of each suits every problem.
constexpr int kAnyBlocks = 1 << 30, kLongProduct = 2048;
constexpr LinearCandidate kFewRows[] = {{{32, 32, 1, 1}, 80, kAnyBlocks},
                                        {{32, 24, 1, 1}, 80, kAnyBlocks},
                                        {{32, 24, 4, 1}, 80, kAnyBlocks},
                                        {{32, 32, 4, 1}, 80, kAnyBlocks},
                                        {{32, 8, 1, 1}, 0, kAnyBlocks}};
constexpr LinearCandidate kShortProducts[] = {
    {{64, 192, 1, 2}, 72, kAnyBlocks}, {{64, 96, 1, 1}, 80, kAnyBlocks}, {{64, 128, 1, 2}, 120, kAnyBlocks},
    {{64, 64, 1, 1}, 56, kAnyBlocks},  {{64, 48, 1, 1}, 48, kAnyBlocks}, {{64, 32, 1, 1}, 80, kAnyBlocks},
    {{64, 48, 4, 1}, 48, kAnyBlocks},  {{64, 32, 4, 1}, 48, kAnyBlocks}, {{64, 8, 1, 1}, 0, kAnyBlocks}};
// Few outputs from long rows: without splitting K, blocks would read either matrix too often.
constexpr LinearCandidate kLongProducts[] = {
    {{64, 192, 1, 1}, 256, kAnyBlocks}, {{64, 128, 1, 2}, 256, kAnyBlocks}, {{128, 96, 4, 1}, 64, 112},
    {{64, 96, 2, 1}, 96, 128},          {{128, 128, 4, 1}, 64, 112},        {{64, 64, 1, 1}, 96, kAnyBlocks},
    {{64, 48, 4, 1}, 80, 160},          {{64, 32, 4, 1}, 48, 256},          {{64, 8, 1, 1}, 0, kAnyBlocks}};

inline LinearChoice choose_linear(int expected_tokens, int n, int k) {
  const auto suits = [=](const LinearCandidate& c) {
    const int rows = c.choice.rows * c.choice.sharers;
    const int along_tokens = (expected_tokens + rows - 1) / rows * c.choice.sharers;
    const int blocks = along_tokens * (n / c.choice.columns) * c.choice.splits;
    return n % c.choice.columns == 0 && blocks >= c.least && blocks <= c.most;
  };
  const auto first = [&](const auto& candidates) {
    const LinearCandidate* c = candidates;
    while (!suits(*c)) ++c;
    return c->choice;
  };
  if (expected_tokens <= 32) return first(kFewRows);
  return k < kLongProduct ? first(kShortProducts) : first(kLongProducts);
}

}  // namespace efft::cuda
