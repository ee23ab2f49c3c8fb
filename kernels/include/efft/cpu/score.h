// Which keys a query sees and what is added to its logits: the policy that every attention kernel takes.
//
// A policy has these members:
//
//   static Span keys(const Attend&, int64_t query, int64_t rows)
//     Of the sequence's keys [0, Attend::keys), a span outside of which none of the queries [query, query + rows) of
//     the sequence sees any. Kernels compute no more than that, rounded to their tiles.
//   static int64_t widest(const Attend&, int64_t rows)
//     The most keys that such a span of `rows` queries may have.
//   static void change(const Attend&, int64_t query, Span span, float* logits)
//     Changes one query's logits q k^T of the keys of `span` (logits[0] is the first one's) before softmax takes
//     Attend::scale times them: a bias adds its value over the scale, a key that is not seen becomes kUnseen.
//   kPositions
//     Whether the kernel adds products with positions to the logits first (attention_positions.h).
#pragma once

#include <algorithm>

#include "efft/cpu/kernels.h"
#include "efft/cpu/simd.h"

namespace efft::cpu {
namespace {

struct Span {
  int64_t first, last;  // [first, last)
};

// So low that no weight is left of it, and finite: differences of infinities would be no numbers.
constexpr float kUnseen = -1e30f;

// Every query sees every key.
struct FullScore {
  static constexpr bool kPositions = false;
  static Span keys(const Attend& p, int64_t, int64_t) { return {0, p.keys}; }
  static int64_t widest(const Attend& p, int64_t) { return p.keys; }
  static void change(const Attend&, int64_t, Span, float*) {}
};

// Every query sees every key, and the kernel adds products with positions.
struct DisentangledScore : FullScore {
  static constexpr bool kPositions = true;
};

// Queries see keys within Attend::reach; Attend::bias, if there is one, is added by distance.
struct RelativeScore {
  static constexpr bool kPositions = false;
  static Span keys(const Attend& p, int64_t query, int64_t rows) {
    const int64_t reach = std::min(p.reach, p.keys);
    return {std::max<int64_t>(query - reach, 0), std::min<int64_t>(query + rows + reach, p.keys)};
  }
  static int64_t widest(const Attend& p, int64_t rows) {
    return std::min(p.keys, rows + 2 * std::min(p.reach, p.keys));
  }
  static void change(const Attend& p, int64_t query, Span span, float* logits) {
    const int64_t count = span.last - span.first;
    if (p.bias) {
      const float* bias = p.bias + span.first - query;
      for (int64_t i = 0; i < count; i += kWidth) {
        store_some(logits + i, load_some(logits + i, count - i) + load_some(bias + i, count - i), count - i);
      }
    }
    const int64_t reach = std::min(p.reach, p.keys);
    std::fill(logits, logits + std::clamp<int64_t>(query - reach - span.first, 0, count), kUnseen);
    std::fill(logits + std::clamp<int64_t>(query + reach + 1 - span.first, 0, count), logits + count, kUnseen);
  }
};

}  // namespace
}  // namespace efft::cpu
