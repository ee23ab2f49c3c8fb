// Softmax attention of one head of one sequence, a few queries at a time.
//
// Keys are turned once into panels with the head's depth running down them, so that both products use the register
// tiles of the linear layers; a tile's rows go through scores, softmax and values before the next ones begin. Where a
// query sees more keys than the nearest cache has room for, blocks of queries meet one block of keys after the other,
// and sums are rescaled as higher scores turn up (Milakov and Gimelshein 2018; Rabe and Staats 2021), so that nothing
// grows with the square of the length.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "efft/cpu/attention_positions.h"
#include "efft/cpu/attention_tiles.h"
#include "efft/cpu/math.h"
#include "efft/cpu/score.h"

namespace efft::cpu {
namespace {

// Where a head's pieces lie in the scratch.
struct AttendScratch {
  int64_t keys_padded, score_stride, head_padded;
  int64_t keys_at, values_at, scores_at, weights_at, tile_at, sums_at, states_at, bytes;

  AttendScratch(int64_t keys, int64_t head_size) {
    keys_padded = round_up(keys, kWidth);
    // Rows at a distance of a power of two would share sets of the cache.
    score_stride = std::min(keys_padded, kWholeKeys) + 2 * kAttendColumns + 16;
    head_padded = round_up(head_size, kWidth);
    Carve carve;
    keys_at = carve.take(keys_padded * head_size * 4);
    values_at = carve.take(round_up(keys, 2) * head_padded * 4);
    scores_at = carve.take(kAttendRows * score_stride * 4);
    weights_at = carve.take(kAttendRows * score_stride * 2);
    tile_at = carve.take(kAttendRows * kAttendColumns * 4);
    sums_at = carve.take(kPositionQueries * head_padded * 4);
    states_at = carve.take(kPositionQueries * 2 * 4);
    bytes = carve.used;
  }

  struct Carve {
    int64_t used = 0;
    int64_t take(int64_t bytes) { return std::exchange(used, used + round_up(bytes, 64)); }
  };
};

// Scores to weights in place or in bf16; returns their sum. Columns up to the next pair become zero. top: the highest
// score, of these and of what it was before.
template <typename Element>
inline float softmax_row(const float* scores, int64_t keys, float scale, Element* weights, float* top_so_far) {
  constexpr Precision precision = std::is_same_v<Element, float> ? Precision::full : Precision::brief;
  const float log2_scale = scale * 1.44269504f;
  const int64_t whole = keys / kWidth * kWidth;
  Vec top = splat(scores[0]);
  for (int64_t i = 0; i < whole; i += kWidth) top = max(top, load(scores + i));
  float highest = reduce_max(top);
  for (int64_t i = whole; i < keys; ++i) highest = scores[i] > highest ? scores[i] : highest;
  highest = *top_so_far = std::max(highest, *top_so_far);
  const Vec multiplier = splat(log2_scale), shift = splat(-highest * log2_scale);
  Vec sum = splat(0.0f);
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Vec weight = exp2<precision>(fma(load(scores + i), multiplier, shift));
    sum = sum + weight;
    store(weights + i, weight);
  }
  float total = reduce_add(sum);
  if (whole < keys) {
    float lanes[kWidth] = {};
    store(lanes, exp2<precision>(fma(load_part(scores + whole, keys - whole), multiplier, shift)));
    for (int64_t i = keys - whole; i < kWidth; ++i) lanes[i] = 0.0f;
    total += reduce_add(load(lanes));
    store(weights + whole, load(lanes));
  }
  return total;
}

template <typename Element, typename Score>
class Attention {
  static constexpr bool kFloat = std::is_same_v<Element, float>;
  static constexpr int64_t kStep = 4 / sizeof(Element);

 public:
  Attention(const Attend& p, void* scratch)
      : p_(p),
        packed_(whole_vectors(Score::keys(p, p.first_query, p.queries))),
        at_(packed_.last - packed_.first, p.head_size),
        whole_(Score::widest(p, kAttendRows) <= (Score::kPositions ? kPositionKeys : kWholeKeys)),
        query_(static_cast<const Element*>(p.query)),
        out_(static_cast<Element*>(p.out)),
        keys_(at<Element>(scratch, at_.keys_at)),
        scores_(at<float>(scratch, at_.scores_at)),
        weights_(at<Element>(scratch, kFloat ? at_.scores_at : at_.weights_at)),
        tile_(at<float>(scratch, at_.tile_at)),
        sums_(at<float>(scratch, at_.sums_at)),
        states_(at<State>(scratch, at_.states_at)),
        positions_(p, static_cast<char*>(scratch) + at_.bytes) {
    pack(at<Element>(scratch, at_.values_at));
  }

  // Whether a sequence's keys are seen at once must not depend on how its queries are cut into tasks: sums would be
  // rounded in another order.
  void run() {
    const int64_t queries = whole_ && !Score::kPositions ? p_.queries
                            : Score::kPositions          ? kPositionQueries
                                                         : kQueryBlock;
    const int64_t keys = whole_ ? p_.keys : Score::kPositions ? kPositionKeys : kKeyBlock;
    for (int64_t first = 0; first < p_.queries; first += queries) {
      const int64_t count = std::min(queries, p_.queries - first);
      const Span seen = Score::keys(p_, p_.first_query + first, count);
      if (!whole_) std::fill(states_, states_ + count, State{});
      for (int64_t key = seen.first / keys * keys; key < seen.last; key += keys) {
        block(first, count, {key, std::min(key + keys, p_.keys)});
      }
      if (!whole_) finish(first, count);
    }
  }

 private:
  struct State {
    float top = 0, sum = 0;  // the highest score so far, and the sum of the weights below it; 0: none yet
  };

  template <typename T>
  static T* at(void* scratch, int64_t offset) {
    return reinterpret_cast<T*>(static_cast<char*>(scratch) + offset);
  }

  // The end of a span, too, is the same vector's for whichever queries, but for the sequence's own.
  Span whole_vectors(Span span) const {
    return {span.first / kWidth * kWidth, std::min(round_up(span.last, kWidth), p_.keys)};
  }

  void pack(Element* room) {
    const int64_t count = packed_.last - packed_.first;
    const auto* key = static_cast<const Element*>(p_.key) + packed_.first * p_.key_stride;
    const auto* value = static_cast<const Element*>(p_.value) + packed_.first * p_.key_stride;
    pack_panels(key, p_.key_stride, count, p_.head_size, keys_);
    values_ = room;
    value_stride_ = at_.head_padded;
    if constexpr (!kFloat) {
      interleave_pairs(value, p_.key_stride, count, p_.head_size, room, at_.head_padded);
    } else if (whole_) {
      values_ = value;
      value_stride_ = p_.key_stride;
    } else {
      for (int64_t k = 0; k < count; ++k) {
        std::memcpy(room + k * at_.head_padded, value + k * p_.key_stride, p_.head_size * sizeof(Element));
      }
    }
  }

  void block(int64_t first, int64_t count, Span keys) {
    const int64_t groups = (count + kAttendRows - 1) / kAttendRows;
    if constexpr (Score::kPositions) {
      positions_.start(p_.first_query + first, count, keys, keys_, packed_.first, at_.keys_padded);
    }
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t begin = first + g * count / groups, rows = first + (g + 1) * count / groups - begin;
      Span span = whole_vectors(Score::keys(p_, p_.first_query + begin, rows));
      span = {std::max(span.first, keys.first), std::min(span.last, keys.last)};
      if (span.first < span.last)
        group(begin, rows, span, states_ + begin - first, sums_ + (begin - first) * at_.head_padded);
    }
  }

  void group(int64_t first, int64_t rows, Span span, State* states, float* sums) {
    const Element* query = query_ + first * p_.query_stride;
    multiply_panels(query, p_.query_stride, rows, keys_, at_.keys_padded, p_.head_size, span.first - packed_.first,
                    round_up(span.last - packed_.first, kWidth), scores_, at_.score_stride);
    if constexpr (Score::kPositions) {
      positions_.add(query, p_.first_query + first, rows, span, scores_, at_.score_stride);
    }
    float factor[kAttendRows];
    for (int64_t r = 0; r < rows; ++r) {
      float* logits = scores_ + r * at_.score_stride;
      Score::change(p_, p_.first_query + first + r, span, logits);
      factor[r] = weigh(logits, span.last - span.first, weights_ + r * at_.score_stride, states[r]);
    }
    for (int64_t column = 0; column < p_.head_size; column += kAttendColumns) {
      const int64_t columns = std::min(p_.head_size - column, kAttendColumns);
      attend_tile_of<Element>(rows, (columns + kWidth - 1) / kWidth)(
          weights_, at_.score_stride, values_ + (span.first - packed_.first) * value_stride_ + column * kStep,
          value_stride_, (span.last - span.first + kStep - 1) / kStep, tile_, kAttendColumns);
      for (int64_t r = 0; r < rows; ++r) {
        const float* tile = tile_ + r * kAttendColumns;
        if (whole_) {
          write(tile, splat(factor[r]), columns, out_ + (first + r) * p_.out_stride + column);
        } else {
          accumulate(tile, factor[r], columns, sums + r * at_.head_padded + column);
        }
      }
    }
  }

  // Scores to weights. Returns what the weighted values are to be multiplied by (whole), or what earlier sums are.
  float weigh(const float* logits, int64_t keys, Element* weights, State& state) const {
    if (whole_) {
      float top = logits[0];
      return 1.0f / softmax_row(logits, keys, p_.scale, weights, &top);
    }
    const float before = state.top;
    if (state.sum == 0.0f) state.top = logits[0];
    const float sum = softmax_row(logits, keys, p_.scale, weights, &state.top);
    float factor = 0.0f;
    if (state.sum != 0.0f) {
      const Vec power = splat((before - state.top) * (p_.scale * 1.44269504f));
      factor = reduce_max(exp2<Precision::full>(power));
    }
    state.sum = state.sum * factor + sum;
    return factor;
  }

  static void write(const float* from, Vec factor, int64_t count, Element* to) {
    for (int64_t i = 0; i < count; i += kWidth) store_some(to + i, load(from + i) * factor, count - i);
  }

  static void accumulate(const float* from, float factor, int64_t count, float* to) {
    if (factor == 0.0f) {
      for (int64_t i = 0; i < count; i += kWidth) store(to + i, load(from + i));
      return;
    }
    const Vec old = splat(factor);
    for (int64_t i = 0; i < count; i += kWidth) store(to + i, fma(load(to + i), old, load(from + i)));
  }

  void finish(int64_t first, int64_t count) const {
    for (int64_t q = 0; q < count; ++q) {
      write(sums_ + q * at_.head_padded, splat(1.0f / states_[q].sum), p_.head_size,
            out_ + (first + q) * p_.out_stride);
    }
  }

  const Attend& p_;
  const Span packed_;  // of the sequence's keys
  const AttendScratch at_;
  const bool whole_;
  const Element* query_;
  Element* out_;
  Element* keys_;
  const Element* values_ = nullptr;
  int64_t value_stride_ = 0;  // elements from key to key; of bf16 pairs half of what is between them
  float* scores_;
  Element* weights_;
  float* tile_;
  float* sums_;
  State* states_;
  Positions<Element> positions_;
};

template <typename Element, typename Score>
void attend(const Attend& p, void* scratch) {
  Attention<Element, Score>(p, scratch).run();
}

}  // namespace
}  // namespace efft::cpu
