// Which keys a query sees and what is added to its logits: the policy that every attention kernel takes.
//
// A policy has two members:
//
//   static Span keys(const Attend&, int64_t query, int64_t rows)
//     Of the sequence's keys [0, Attend::keys), a span outside of which none of the queries [query, query + rows) of
//     the sequence sees any. Kernels compute no more than that, rounded to their tiles.
//   static void change(const Attend&, int64_t query, Span span, float* logits)
//     Changes one query's logits q k^T of the keys of `span` (logits[0] is the first one's) before softmax takes
//     Attend::scale times them: a bias adds its value over the scale, a key that is not seen becomes kUnseen.
#pragma once

#include "efft/cpu/kernels.h"

namespace efft::cpu {
namespace {

struct Span {
  int64_t first, last;  // [first, last)
};

// So low that no weight is left of it, and finite: differences of infinities would be no numbers.
constexpr float kUnseen = -1e30f;

// Every query sees every key.
struct FullScore {
  static Span keys(const Attend& p, int64_t, int64_t) { return {0, p.keys}; }
  static void change(const Attend&, int64_t, Span, float*) {}
};

}  // namespace
}  // namespace efft::cpu
