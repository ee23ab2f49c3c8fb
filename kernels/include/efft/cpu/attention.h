// Softmax attention of one head of one sequence, a few queries at a time.
//
// Keys are turned once into panels with the head's depth running down them, so that both products use the register
// tiles of the linear layers; a tile's rows go through scores, softmax and values before the next ones begin.
#pragma once

#include <type_traits>

#include "efft/cpu/kernels.h"
#include "efft/cpu/math.h"
#include "efft/cpu/microkernel_bf16.h"
#include "efft/cpu/microkernel_f32.h"
#include "efft/cpu/score.h"
#include "efft/cpu/transpose.h"

namespace efft::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kAttendRows = 6, kAttendVectors = 4;
#elif defined(__AVX2__)
constexpr int kAttendRows = 6, kAttendVectors = 2;
#else
constexpr int kAttendRows = 4, kAttendVectors = 1;
#endif
constexpr int64_t kAttendColumns = int64_t{kAttendVectors} * kWidth;

template <typename Element>
using AttendTile = void (*)(const Element* a, int64_t a_stride, const Element* b, int64_t b_stride, int64_t steps,
                            float* c, int64_t c_stride);

template <typename Element, int R, int N>
void attend_tile(const Element* a, int64_t a_stride, const Element* b, int64_t b_stride, int64_t steps, float* c,
                 int64_t c_stride) {
  if constexpr (std::is_same_v<Element, float>) {
    tile_f32<R, N>(a, a_stride, b, b_stride, steps, c, c_stride, false);
  } else {
#if defined(__AVX512BF16__)
    tile_bf16<R, N>(a, a_stride, b, b_stride, steps, c, c_stride, false);
#endif
  }
}

template <typename Element, int R = kAttendRows, int N = kAttendVectors>
AttendTile<Element> attend_tile_of(int64_t rows, int64_t vectors) {
  if constexpr (N > 1) {
    if (vectors < N) return attend_tile_of<Element, R, N - 1>(rows, vectors);
  }
  if constexpr (R > 1) {
    if (rows < R) return attend_tile_of<Element, R - 1, N>(rows, vectors);
  }
  return attend_tile<Element, R, N>;
}

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Where a head's pieces lie in the scratch.
struct AttendScratch {
  int64_t keys_padded, score_stride, head_padded;
  int64_t keys_at, values_at, scores_at, weights_at, tile_at, bytes;

  AttendScratch(int64_t keys, int64_t head_size) {
    keys_padded = round_up(keys, kWidth);
    score_stride = keys_padded + 16;  // rows at a distance of a power of two would share sets of the cache
    head_padded = round_up(head_size, kWidth);
    keys_at = 0;
    values_at = keys_at + round_up(keys_padded * head_size * 4, 64);
    scores_at = values_at + round_up(round_up(keys, 2) * head_padded * 2, 64);
    weights_at = scores_at + kAttendRows * score_stride * 4;
    tile_at = weights_at + round_up(kAttendRows * score_stride * 2, 64);
    bytes = tile_at + round_up(kAttendRows * kAttendColumns * 4, 64);
  }
};

// Scores to weights in place or in bf16; returns 1 / their sum. Columns up to the next pair become zero.
template <typename Element>
inline float softmax_row(const float* scores, int64_t keys, float scale, Element* weights) {
  constexpr Precision precision = std::is_same_v<Element, float> ? Precision::full : Precision::brief;
  const float log2_scale = scale * 1.44269504f;
  const int64_t whole = keys / kWidth * kWidth;
  Vec top = splat(scores[0]);
  for (int64_t i = 0; i < whole; i += kWidth) top = max(top, load(scores + i));
  float highest = reduce_max(top);
  for (int64_t i = whole; i < keys; ++i) highest = scores[i] > highest ? scores[i] : highest;
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
  return 1.0f / total;
}

template <typename Element>
void pack_keys(const Attend& p, int64_t words, uint32_t* out) {
  constexpr int64_t per_word = 4 / sizeof(Element);
  const auto* key = reinterpret_cast<const uint32_t*>(p.key);
  for (int64_t first = 0; first < p.keys; first += kAttendColumns) {
    const int64_t count = p.keys - first < kAttendColumns ? p.keys - first : kAttendColumns;
    const int64_t columns = round_up(count, kWidth);
    transpose_words(key + first * p.key_stride / per_word, p.key_stride / per_word, count, words, out, columns);
    out += columns * words;
  }
}

template <typename Element, typename Score>
void attend(const Attend& p, void* scratch) {
  constexpr bool is_float = std::is_same_v<Element, float>;
  constexpr int64_t step = 4 / sizeof(Element);
  const AttendScratch at(p.keys, p.head_size);
  char* base = static_cast<char*>(scratch);
  auto* keys = reinterpret_cast<Element*>(base + at.keys_at);
  auto* scores = reinterpret_cast<float*>(base + at.scores_at);
  auto* weights = reinterpret_cast<Element*>(base + (is_float ? at.scores_at : at.weights_at));
  auto* tile = reinterpret_cast<float*>(base + at.tile_at);
  const auto* query = static_cast<const Element*>(p.query);
  auto* out = static_cast<Element*>(p.out);

  const int64_t words = p.head_size / step;
  pack_keys<Element>(p, words, reinterpret_cast<uint32_t*>(keys));
  const Element* values = static_cast<const Element*>(p.value);
  int64_t value_stride = p.key_stride;  // per step of the depth, which is a pair of keys in bf16
  if constexpr (!is_float) {
    auto* pairs = reinterpret_cast<Element*>(base + at.values_at);
    interleave_pairs(values, p.key_stride, p.keys, p.head_size, pairs, at.head_padded);
    values = pairs;
    value_stride = at.head_padded;
  }

  const int64_t groups = (p.queries + kAttendRows - 1) / kAttendRows;
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = g * p.queries / groups, rows = (g + 1) * p.queries / groups - first;
    const Span seen = Score::keys(p, p.first_query + first, rows);
    const Span span{seen.first / kAttendColumns * kAttendColumns, seen.last};  // whole panels in front
    const int64_t end = round_up(span.last, kWidth);
    const Element* panel = keys + span.first * words * step;
    for (int64_t key = span.first; key < end; key += kAttendColumns) {
      const int64_t left = at.keys_padded - key, wanted = end - key;
      const int64_t columns = left < kAttendColumns ? left : kAttendColumns;
      attend_tile_of<Element>(rows, (wanted < columns ? wanted : columns) / kWidth)(
          query + first * p.query_stride, p.query_stride, panel, columns, words, scores + key, at.score_stride);
      panel += columns * words * step;
    }
    float inverse[kAttendRows];
    for (int64_t r = 0; r < rows; ++r) {
      float* logits = scores + r * at.score_stride + span.first;
      Score::change(p, p.first_query + first + r, span, logits);
      inverse[r] = softmax_row(logits, span.last - span.first, p.scale, weights + r * at.score_stride + span.first);
    }
    for (int64_t column = 0; column < p.head_size; column += kAttendColumns) {
      const int64_t left = p.head_size - column;
      const int64_t columns = left < kAttendColumns ? left : kAttendColumns;
      attend_tile_of<Element>(rows, (columns + kWidth - 1) / kWidth)(
          weights + span.first, at.score_stride, values + span.first / step * value_stride + column * step,
          value_stride, (span.last - span.first + step - 1) / step, tile, kAttendColumns);
      for (int64_t r = 0; r < rows; ++r) {
        const Vec factor = splat(inverse[r]);
        Element* to = out + (first + r) * p.out_stride + column;
        for (int64_t i = 0; i < columns; i += kWidth) {
          store_some(to + i, load(tile + r * kAttendColumns + i) * factor, columns - i);
        }
      }
    }
  }
}

}  // namespace
}  // namespace efft::cpu
