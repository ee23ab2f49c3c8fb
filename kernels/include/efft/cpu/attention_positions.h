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

// Room for the products of a block.
struct PositionScratch {
  static constexpr int64_t kQueryStride = kPositionKeys + kAttendRows + 2 * kAttendColumns;
  int64_t key_stride, from_queries_at = 0, from_keys_at, bytes;

  explicit PositionScratch(int64_t keys) {
    key_stride = round_up(std::min(keys, kPositionKeys), kWidth) + 16;
    from_keys_at = round_up(kAttendRows * kQueryStride * 4, 64);
    bytes = from_keys_at + (kPositionQueries + kPositionKeys) * key_stride * 4;
  }
};

template <typename Element>
class Positions {
 public:
  Positions(const Attend& p, char* scratch)
      : p_(p),
        at_(p.keys),
        from_queries_(reinterpret_cast<float*>(scratch + at_.from_queries_at)),
        from_keys_(reinterpret_cast<float*>(scratch + at_.from_keys_at)) {
    for (int lane = 0; lane < kWidth; ++lane) diagonal_[lane] = -lane * static_cast<int32_t>(at_.key_stride - 1);
  }

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
    const int64_t count = span.last - span.first;
    if (p_.position_keys) {
      const auto [low, high] = rows_of(first, rows, span);
      const int64_t column = (p_.last_row - high) / kWidth * kWidth;
      multiply_panels(query, p_.query_stride, rows, static_cast<const Element*>(p_.position_keys), p_.position_panels,
                      p_.head_size, column, round_up(p_.last_row - low + 1, kWidth), from_queries_,
                      PositionScratch::kQueryStride);
      for (int64_t r = 0; r < rows; ++r) {
        const float* row_zero = from_queries_ + r * PositionScratch::kQueryStride + p_.last_row - column;
        add_of_query(row_zero, p_.row_of + span.first - (first + r), count, logits + r * stride);
      }
    }
    if (!p_.position_queries) return;
    for (int64_t r = 0; r < rows; ++r) {
      const float* row_zero = from_keys_ - lowest_ * at_.key_stride + span.first - first_key_;
      add_of_keys(row_zero, p_.row_of + span.first - (first + r), count, logits + r * stride);
    }
  }

 private:
  // The lowest and the highest row that a pair of these meets.
  std::pair<int64_t, int64_t> rows_of(int64_t query, int64_t count, Span keys) const {
    return {p_.row_of[keys.last - 1 - query], p_.row_of[keys.first - (query + count - 1)]};
  }

  // Rows fall from key to key, one a step near the diagonal and not at all far from it.
  static void add_of_query(const float* row_zero, const int32_t* row_of, int64_t count, float* logits) {
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
      const int32_t first = row_of[i], last = row_of[i + kWidth - 1];
      Vec value;
      if (first - last == kWidth - 1) {
        value = load(row_zero - first);
      } else if (first == last) {
        value = splat(row_zero[-first]);
      } else {
        int32_t at[kWidth];
        for (int lane = 0; lane < kWidth; ++lane) at[lane] = -row_of[i + lane];
        value = gather(row_zero, at);
      }
      store(logits + i, load(logits + i) + value);
    }
    for (; i < count; ++i) logits[i] += row_zero[-row_of[i]];
  }

  void add_of_keys(const float* row_zero, const int32_t* row_of, int64_t count, float* logits) const {
    const int64_t stride = at_.key_stride;
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {
      const int32_t first = row_of[i], last = row_of[i + kWidth - 1];
      const float* start = row_zero + first * stride + i;
      Vec value;
      if (first == last) {
        value = load(start);
      } else if (first - last == kWidth - 1) {
        value = gather(start, diagonal_);
      } else {
        int32_t at[kWidth];
        for (int lane = 0; lane < kWidth; ++lane) {
          at[lane] = (row_of[i + lane] - first) * static_cast<int32_t>(stride) + lane;
        }
        value = gather(start, at);
      }
      store(logits + i, load(logits + i) + value);
    }
    for (; i < count; ++i) logits[i] += row_zero[row_of[i] * stride + i];
  }

  const Attend& p_;
  const PositionScratch at_;
  float* from_queries_;  // [query][position], the last row first
  float* from_keys_;     // [position - lowest_][key]
  int64_t lowest_ = 0, first_key_ = 0;
  int32_t diagonal_[kWidth];
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
