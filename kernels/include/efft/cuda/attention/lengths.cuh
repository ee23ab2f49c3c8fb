// From a block's index to the tokens it works on, read from the cumulative lengths on the device.
#pragma once

namespace efft::cuda {

// Keys that one query row sees, as token indices.
struct KeyRange {
  int begin;
  int end;
};

// A run of packed tokens, cut without regard to sequences, so that short sequences share a block.
struct PackedTile {
  int first_sequence;  // of the tile's first token
  KeyRange keys;       // of all its tokens together
  int tokens;          // in the whole batch
};

// The tile of tokens [first, first + rows). Called by whole warps. A tile past the last token has an empty range.
__device__ inline PackedTile packed_tile(const int* cu_seqlens, int batch, int first, int rows) {
  const int lane = threadIdx.x % 32;
  const int tokens = __ldg(cu_seqlens + batch);
  PackedTile tile{0, {0, 0}, tokens};
  if (first >= tokens) return tile;
  const int last = min(first + rows, tokens) - 1;
  int last_sequence = 0;
  for (int base = 0; base < batch; base += 32) {
    const int sequence = base + lane;
    const int end = sequence < batch ? __ldg(cu_seqlens + sequence + 1) : tokens;
    tile.first_sequence += __popc(__ballot_sync(0xffffffffu, end <= first));
    last_sequence += __popc(__ballot_sync(0xffffffffu, end <= last));
  }
  tile.keys = {__ldg(cu_seqlens + tile.first_sequence), __ldg(cu_seqlens + last_sequence + 1)};
  return tile;
}

// The tokens of the sequence that a row of the tile belongs to; none for a row past the last token.
__device__ inline KeyRange row_sequence(const int* cu_seqlens, const PackedTile& tile, int row) {
  if (row >= tile.tokens) return {0, 0};
  int sequence = tile.first_sequence;
  int end = __ldg(cu_seqlens + sequence + 1);
  while (end <= row) end = __ldg(cu_seqlens + ++sequence + 1);
  return {__ldg(cu_seqlens + sequence), end};
}

// Some rows of one sequence, for a block that does not mix sequences.
struct alignas(16) SequenceTile {
  int begin;   // token of the sequence's first row
  int length;  // of the sequence; 0 where there are fewer tiles
  int row;     // first row of the tile, within the sequence
  int head;
};

constexpr int kSortedSequences = 32;

// Orders up to 32 sequences, one per lane, longest first. Blocks start in the order of their index, and the long ones
// must not come last.
__device__ inline void sort_descending(int& begin, int& length, int (&order)[kSortedSequences]) {
  const int lane = threadIdx.x % 32;
  const int key = length * 32 + lane;
  int rank = 0;
#pragma unroll
  for (int other = 0; other < 32; ++other) rank += __shfl_sync(~0u, key, other) > key;
  __syncwarp();
  order[rank] = lane;
  __syncwarp();
  begin = __shfl_sync(~0u, begin, order[lane]);
  length = __shfl_sync(~0u, length, order[lane]);
}

// The round-th tile of a persistent block when tiles are sorted by falling cost: every second round runs backwards, so
// that a block with an expensive tile gets a cheap one next.
__device__ inline int snake_index(int round, int block, int blocks) {
  return round % 2 == 0 ? round * blocks + block : (round + 1) * blocks - 1 - block;
}

// The index-th tile of `rows` rows, `group_rows` for each of a block's one or two warpgroups, when every sequence is
// cut by itself: first all that have work for every warpgroup, then the ends of sequences that have it for one. Called
// by one warp.
__device__ inline SequenceTile sequence_tile(const int* cu_seqlens, int batch, int index, int rows, int group_rows,
                                             int (&order)[kSortedSequences]) {
  const int lane = threadIdx.x % 32;
#pragma unroll 1
  for (int ends = 0; ends < 2; ++ends) {
#pragma unroll 1
    for (int base = 0; base < batch; base += 32) {
      const int sequence = min(base + lane, batch);
      int begin = __ldg(cu_seqlens + sequence);
      int length = __ldg(cu_seqlens + min(sequence + 1, batch)) - begin;
      if (batch > 1 && batch <= kSortedSequences) sort_descending(begin, length, order);
      const int full = (length + group_rows - 1) / rows;
      const int tiles = ends == 0 ? full : (length + rows - 1) / rows - full;
      int through = tiles;  // tiles of this sequence and all before it
#pragma unroll
      for (int distance = 1; distance < 32; distance *= 2) {
        const int before = __shfl_up_sync(~0u, through, distance);
        if (lane >= distance) through += before;
      }
      const unsigned beyond = __ballot_sync(~0u, through > index);
      if (beyond != 0) {
        const int owner = __ffs(beyond) - 1;
        const int first = __shfl_sync(~0u, through - tiles, owner), skipped = ends == 0 ? 0 : full;
        return {__shfl_sync(~0u, begin, owner), __shfl_sync(~0u, length, owner),
                (index - first + __shfl_sync(~0u, skipped, owner)) * rows, 0};
      }
      index -= __shfl_sync(~0u, through, 31);
    }
  }
  return {0, 0, 0, 0};
}

}  // namespace efft::cuda
