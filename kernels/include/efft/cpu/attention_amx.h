// Softmax attention of one head of one sequence on AMX tiles, blocked over 32 queries.
//
// Keys and values are turned into panels as the linear layers' weights are. The products are so fast that softmax takes
// most of the time; it works in place and no more exactly than weights rounded to bf16 can show.
#pragma once

#if defined(__AMX_TILE__)

#include <algorithm>

#include "efft/cpu/attention.h"
#include "efft/cpu/microkernel_amx.h"

namespace efft::cpu {
namespace {

constexpr int64_t kAmxKeys = kAmxColumns;  // per panel, and per step of the product with values

inline bool amx_attends(int64_t head_size) { return head_size % kAmxKeys == 0; }

struct AmxAttendScratch {
  int64_t keys_padded, score_stride, keys_at, values_at, scores_at, out_at, bytes;

  AmxAttendScratch(int64_t keys, int64_t head_size) {
    keys_padded = round_up(keys, kAmxKeys);
    score_stride = keys_padded + 16;  // an odd number of cache lines
    keys_at = 0;
    values_at = keys_at + keys_padded * head_size * 2;
    scores_at = values_at + keys_padded * head_size * 2;
    out_at = scores_at + 2 * kAmxTileRows * score_stride * 4;
    bytes = out_at + 2 * kAmxTileRows * kAmxColumns * 4;
  }
};

// 2^x for x of at most a little above zero. Relative error 7.5e-5, a twentieth of bf16's rounding.
inline Vec exp2_weight(Vec x) {
  constexpr float coefficients[] = {0.999925196f, 0.695833564f, 0.226067156f, 0.0780245215f};
  const Vec fraction = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(polynomial(fraction, coefficients), x);
}

// Turns a row of scores into weights, which overwrite it from its start; those of columns [keys, padded) become zero.
// Returns 1 / their sum.
inline float softmax_in_place(float* scores, int64_t keys, int64_t padded, float scale) {
  const float log2_scale = scale * 1.44269504f;
  const int64_t whole = keys / kWidth * kWidth, pairs = keys / (2 * kWidth) * (2 * kWidth);
  const __mmask16 rest = first_lanes(keys - whole);
  const Vec lowest = splat(-__builtin_huge_valf());
  Vec top = whole < keys ? _mm512_mask_loadu_ps(lowest, rest, scores + whole) : lowest, other = lowest;
  for (int64_t i = 0; i < pairs; i += 2 * kWidth) {
    top = max(top, load(scores + i));
    other = max(other, load(scores + i + kWidth));
  }
  if (pairs < whole) top = max(top, load(scores + pairs));
  const Vec multiplier = splat(log2_scale), shift = splat(-reduce_max(max(top, other)) * log2_scale);
  auto* weights = reinterpret_cast<bf16*>(scores);
  Vec sum = splat(0.0f), second = splat(0.0f);
  for (int64_t i = 0; i < pairs; i += 2 * kWidth) {
    const Vec a = exp2_weight(fma(load(scores + i), multiplier, shift));
    const Vec b = exp2_weight(fma(load(scores + i + kWidth), multiplier, shift));
    sum = sum + a;
    second = second + b;
    _mm512_storeu_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
  for (int64_t i = pairs; i < padded; i += kWidth) {
    const __mmask16 mask = i + kWidth <= keys ? 0xffff : i < keys ? rest : 0;
    const Vec score = _mm512_maskz_loadu_ps(mask, scores + i);
    const Vec weight = _mm512_maskz_mov_ps(mask, exp2_weight(fma(score, multiplier, shift)));
    sum = sum + weight;
    store(weights + i, weight);
  }
  return 1.0f / reduce_add(sum + second);
}

// c = a b over `steps` steps of the depth.
template <bool two_groups>
inline void attend_tile(const TileRows& a, int64_t steps, const char* b, int64_t b_stride, char* c, char* second,
                        int64_t c_stride) {
  clear_sums<two_groups>();
  for (int64_t k = 0; k < steps; ++k) {
    tile_step<bf16, two_groups>(a, k * kTileRowBytes, b + k * kAmxTileRows * b_stride, b_stride);
  }
  store_sums<two_groups>(c, second, c_stride);
}

template <typename Score>
class AmxAttention {
 public:
  AmxAttention(const Attend& p, void* scratch)
      : p_(p),
        packed_(whole_panels(Score::keys(p, p.first_query, p.queries))),
        at_(packed_.last - packed_.first, p.head_size),
        tile_rows_(std::min(p.queries, kAmxTileRows)),
        keys_(static_cast<char*>(scratch) + at_.keys_at),
        values_(static_cast<char*>(scratch) + at_.values_at),
        scores_(static_cast<char*>(scratch) + at_.scores_at),
        tile_(static_cast<char*>(scratch) + at_.out_at) {}

  void run() {
    pack();
    const TileRegisters registers(tile_rows_);
    for (int64_t first = 0; first < p_.queries; first += 2 * kAmxTileRows) {
      const int64_t rows = std::min(p_.queries - first, 2 * kAmxTileRows);
      if (rows > kAmxTileRows) {
        block<true>(first, rows);
      } else {
        block<false>(first, rows);
      }
    }
  }

 private:
  int64_t value_stride() const { return p_.head_size * 4; }

  Span whole_panels(Span span) const {
    return {span.first / kAmxKeys * kAmxKeys, std::min(round_up(span.last, kAmxKeys), p_.keys)};
  }

  void pack() const {
    const int64_t words = p_.head_size / 2, stride = p_.key_stride / 2, keys = packed_.last - packed_.first;
    const auto* key = static_cast<const uint32_t*>(p_.key) + packed_.first * stride;
    for (int64_t first = 0; first < keys; first += kAmxKeys) {
      auto* panel = reinterpret_cast<uint32_t*>(keys_ + first * p_.head_size * 2);
      const int64_t count = std::min(keys - first, kAmxKeys);
      transpose_words(key + first * stride, stride, count, words, panel, kAmxKeys);
    }
    auto* pairs = reinterpret_cast<bf16*>(values_);
    const auto* value = static_cast<const bf16*>(p_.value) + packed_.first * p_.key_stride;
    interleave_pairs(value, p_.key_stride, keys, p_.head_size, pairs, p_.head_size);
    const int64_t filled = round_up(keys, 2);
    std::memset(pairs + filled * p_.head_size, 0, (at_.keys_padded - filled) * p_.head_size * 2);
  }

  // Tiles of 16 rows end within the queries: where fewer are left, a tile begins in rows that the one before has too.
  template <bool two_groups>
  void block(int64_t first, int64_t rows) {
    const int64_t start = two_groups ? first : first + rows - tile_rows_;
    const int64_t second = two_groups ? first + rows - tile_rows_ : start;
    const int64_t skipped = first - start, score_bytes = at_.score_stride * 4;
    const char* query = static_cast<const char*>(p_.query);
    const int64_t query_bytes = p_.query_stride * 2;
    const int64_t count = skipped + rows;
    const Span span = whole_panels(Score::keys(p_, p_.first_query + start, count));
    const int64_t front = span.first - packed_.first, padded = round_up(span.last - span.first, kAmxKeys);
    TileRegisters::written();
    for (int64_t key = 0; key < padded; key += kAmxKeys) {
      char* to = scores_ + key * 4;
      attend_tile<two_groups>({query + start * query_bytes, query + second * query_bytes, query_bytes},
                              p_.head_size / kAmxKeys, keys_ + (front + key) * p_.head_size * 2, kAmxKeys * 4, to,
                              to + (second - start) * score_bytes, score_bytes);
    }
    float inverse[2 * kAmxTileRows];
    for (int64_t row = 0; row < count; ++row) {
      auto* logits = reinterpret_cast<float*>(scores_ + row * score_bytes);
      Score::change(p_, p_.first_query + start + row, span, logits);
      inverse[row] = softmax_in_place(logits, span.last - span.first, padded, p_.scale);
    }
    const char* values = values_ + front * p_.head_size * 2;
    TileRegisters::written();
    constexpr int64_t out_stride = kAmxColumns * 4;
    for (int64_t column = 0; column < p_.head_size; column += kAmxColumns) {
      attend_tile<two_groups>({scores_, scores_ + (second - start) * score_bytes, score_bytes}, padded / kAmxKeys,
                              values + column * 4, value_stride(), tile_, tile_ + (second - start) * out_stride,
                              out_stride);
      for (int64_t row = 0; row < rows; ++row) {
        const auto* from = reinterpret_cast<const float*>(tile_ + (skipped + row) * out_stride);
        const Vec factor = splat(inverse[skipped + row]);
        bf16* to = static_cast<bf16*>(p_.out) + (first + row) * p_.out_stride + column;
        store(to, load(from) * factor);
        store(to + kWidth, load(from + kWidth) * factor);
      }
    }
  }

  const Attend& p_;
  const Span packed_;  // of the sequence's keys
  const AmxAttendScratch at_;
  const int64_t tile_rows_;
  char *keys_, *values_, *scores_, *tile_;
};

template <typename Score>
void attend_amx(const Attend& p, void* scratch) {
  if (!amx_attends(p.head_size)) return attend<bf16, Score>(p, scratch);
  AmxAttention<Score>(p, scratch).run();
}

}  // namespace
}  // namespace efft::cpu

#endif
