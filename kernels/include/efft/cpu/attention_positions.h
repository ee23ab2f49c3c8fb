// DeBERTa's products of queries and keys with positions (He et al. 2021), for a block of queries and one of keys.
//
// A logit's two values depend on its query or key and on the row of the positions that its distance meets. So queries
// are multiplied by a band of rows, keys by another, and each logit picks its values from the results: those of its
// query lie side by side, those of keys along a diagonal. Far from the diagonal all distances share a row, which is
// all that a block there computes.
#pragma once

#include <utility>

#include "efft/cpu/attention_tiles.h"
#include "efft/cpu/score.h"

namespace efft::cpu {
namespace {

// Room for the products of a block; rows: of positions that any distance meets.
struct PositionScratch {
  int64_t query_stride, key_stride, from_queries_at = 0, from_keys_at, bytes;

  PositionScratch(int64_t keys, int64_t rows) {
    query_stride = round_up(rows, kWidth) + 16;
    key_stride = round_up(std::min(keys, kPositionKeys), kWidth) + 16;
    from_keys_at = round_up(kAttendRows * query_stride * 4, 64);
    bytes = from_keys_at + (rows + kAttendRows) * key_stride * 4;
  }
};

// Row r of `out` += the diagonal of `from` that falls from its row r by one row a column: out[r][lane] +=
// from[r - lane][lane]. Each step moves half of the lanes by a power of two, so that a row takes but a few selections.
inline void add_diagonals(const float* from, int64_t stride, float* out, int64_t out_stride, int64_t rows) {
  constexpr int kFirst = kWidth - 1, kAll = kFirst + kAttendRows;
  Vec v[kAll];
#pragma GCC unroll 32
  for (int k = 0; k < kAll; ++k) v[k] = load(from + (k - kFirst) * stride);
#pragma GCC unroll 32
  for (int k = kAll - 1; k >= 1; --k) v[k] = select_lanes<1>(v[k], v[k - 1]);
#pragma GCC unroll 32
  for (int k = kAll - 1; k >= 3; --k) v[k] = select_lanes<2>(v[k], v[k - 2]);
#pragma GCC unroll 32
  for (int k = kAll - 1; k >= 7; --k) v[k] = select_lanes<4>(v[k], v[k - 4]);
  if constexpr (kWidth == 16) {
#pragma GCC unroll 32
    for (int k = kAll - 1; k >= 15; --k) v[k] = select_lanes<8>(v[k], v[k - 8]);
  }
#pragma GCC unroll 32
  for (int r = 0; r < kAttendRows; ++r) {
    if (r < rows) store(out + r * out_stride, load(out + r * out_stride) + v[kFirst + r]);
  }
}

template <typename Element>
class Positions {
 public:
  Positions(const Attend& p, char* scratch)
      : p_(p),
        at_(p.keys, p.positions),
        from_queries_(reinterpret_cast<float*>(scratch + at_.from_queries_at)),
        from_keys_(reinterpret_cast<float*>(scratch + at_.from_keys_at)) {}

  // The products of `keys` for queries [query, query + count). panels: of the keys from `packed` on, `width` columns.
  void start(int64_t query, int64_t count, Span keys, const Element* panels, int64_t packed, int64_t width) {
    first_key_ = keys.first;
    if (!p_.position_queries) return;
    const auto [low, high] = rows_of(query, count, keys);
    lowest_ = low;
    const auto* rows = static_cast<const Element*>(p_.position_queries);
    for (int64_t row = low; row <= high; row += kAttendRows) {
      multiply_panels(rows + row * p_.position_stride, p_.position_stride,
                      std::min<int64_t>(high + 1 - row, kAttendRows), panels, width, p_.head_size, keys.first - packed,
                      round_up(keys.last - packed, kWidth), from_keys_ + (row - low) * at_.key_stride, at_.key_stride);
    }
  }

  // Adds to the logits of `rows` queries, the first of which is the sequence's query `first`, and the keys of `span`,
  // which lies within the block.
  void add(const Element* query, int64_t first, int64_t rows, Span span, float* logits, int64_t stride) const {
    const int64_t count = span.last - span.first, whole = count / kWidth * kWidth;
    const Block block{first, rows, span.first, logits, stride, multiply(query, first, rows, span), from_keys(span)};
    const auto [low, high] = rows_of(first, rows, span);
    if (low == high) {
      add_alike(block, low, whole);
      return add_last(block, whole, count);
    }
    for (int64_t i = 0; i < whole; i += kWidth) {
      const int64_t nearest = span.first + i - (first + rows - 1), farthest = span.first + i + kWidth - 1 - first;
      if (nearest >= -p_.position_near && farthest <= p_.position_near) {
        add_near(block, i);
      } else {
        for (int64_t r = 0; r < rows; ++r) add_far(block, r, i);
      }
    }
    add_last(block, whole, count);
  }

 private:
  // Some queries' logits of keys from `key` on; each product where it would lie of the row of positions 0.
  struct Block {
    int64_t query, rows, key;
    float* logits;
    int64_t stride;
    const float* from_queries;  // null: none
    const float* from_keys;     // null: none

    float* row(int64_t r) const { return logits + r * stride; }
  };

  // The lowest and the highest row that a pair of these meets.
  std::pair<int64_t, int64_t> rows_of(int64_t query, int64_t count, Span keys) const {
    return {p_.row_of[keys.last - 1 - query], p_.row_of[keys.first - (query + count - 1)]};
  }

  const float* from_keys(Span span) const {
    return p_.position_queries ? from_keys_ - lowest_ * at_.key_stride + span.first - first_key_ : nullptr;
  }

  const float* multiply(const Element* query, int64_t first, int64_t rows, Span span) const {
    if (!p_.position_keys) return nullptr;
    const auto [low, high] = rows_of(first, rows, span);
    const int64_t column = (p_.last_row - high) / kWidth * kWidth;
    multiply_panels(query, p_.query_stride, rows, static_cast<const Element*>(p_.position_keys),
                    round_up(p_.positions, kWidth), p_.head_size, column, round_up(p_.last_row - low + 1, kWidth),
                    from_queries_, at_.query_stride);
    return from_queries_ + p_.last_row - column;
  }

  const int32_t* row_of(const Block& b, int64_t r, int64_t i) const { return p_.row_of + b.key + i - (b.query + r); }

  // All add the query's product first, the key's then: which of them does it depends on the other queries, the sum's
  // rounding must not.

  // Where each step of distance is a row.
  void add_near(const Block& b, int64_t i) const {
    const int64_t first = *row_of(b, 0, i);
    for (int64_t r = 0; b.from_queries && r < b.rows; ++r) {
      float* logits = b.row(r) + i;
      store(logits, load(logits) + load(b.from_queries + r * at_.query_stride - first - r));
    }
    if (!b.from_keys) return;
    add_diagonals(b.from_keys + first * at_.key_stride + i, at_.key_stride, b.logits + i, b.stride, b.rows);
  }

  // Where all distances are the row's.
  void add_alike(const Block& b, int64_t row, int64_t count) const {
    const float* from_keys = b.from_keys ? b.from_keys + row * at_.key_stride : nullptr;
    for (int64_t r = 0; r < b.rows; ++r) {
      const Vec from_query = splat(b.from_queries ? b.from_queries[r * at_.query_stride - row] : 0.0f);
      float* logits = b.row(r);
      for (int64_t i = 0; i < count; i += kWidth) {
        const Vec sum = load(logits + i) + from_query;
        store(logits + i, from_keys ? sum + load(from_keys + i) : sum);
      }
    }
  }

  // Rows fall from key to key, or stay.
  void add_far(const Block& b, int64_t r, int64_t i) const {
    const int32_t* rows = row_of(b, r, i);
    const int32_t first = rows[0], stride = static_cast<int32_t>(at_.key_stride);
    const float* from_query = b.from_queries ? b.from_queries + r * at_.query_stride - first : nullptr;
    const float* from_keys = b.from_keys ? b.from_keys + int64_t{first} * stride + i : nullptr;
    float* logits = b.row(r) + i;
    Vec sum = load(logits);
    if (first == rows[kWidth - 1]) {
      if (from_query) sum = sum + splat(*from_query);
      return store(logits, from_keys ? sum + load(from_keys) : sum);
    }
    int32_t at[kWidth];
    if (from_query) {
      for (int lane = 0; lane < kWidth; ++lane) at[lane] = first - rows[lane];
      sum = sum + gather(from_query, at);
    }
    if (from_keys) {
      for (int lane = 0; lane < kWidth; ++lane) at[lane] = (rows[lane] - first) * stride + lane;
      sum = sum + gather(from_keys, at);
    }
    store(logits, sum);
  }

  // What makes no whole vector.
  void add_last(const Block& b, int64_t first, int64_t last) const {
    for (int64_t r = 0; r < b.rows; ++r) {
      for (int64_t i = first; i < last; ++i) add_one(b, r, i);
    }
  }

  void add_one(const Block& b, int64_t r, int64_t i) const {
    const int64_t row = *row_of(b, r, i);
    if (b.from_queries) b.row(r)[i] += b.from_queries[r * at_.query_stride - row];
    if (b.from_keys) b.row(r)[i] += b.from_keys[row * at_.key_stride + i];
  }

  const Attend& p_;
  const PositionScratch at_;
  float* from_queries_;  // [query][position], the last row first
  float* from_keys_;     // [position - lowest_][key]
  int64_t lowest_ = 0, first_key_ = 0;
};

// As Kernels::pack_positions.
inline void pack_positions(const float* positions, int64_t stride, int64_t first, int64_t rows, int64_t head_size,
                           Type to, void* scratch, void* out) {
  const float* last = positions + (first + rows - 1) * stride;
  if (to == Type::f32) return pack_panels(last, -stride, rows, head_size, static_cast<float*>(out));
  auto* narrow = static_cast<bf16*>(scratch);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < head_size; i += kWidth) {
      store_some(narrow + r * head_size + i, load_some(last - r * stride + i, head_size - i), head_size - i);
    }
  }
  pack_panels(narrow, head_size, rows, head_size, static_cast<bf16*>(out));
}

}  // namespace
}  // namespace efft::cpu
