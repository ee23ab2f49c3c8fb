// What attention's products are made of: the register tiles of the linear layers, over panels packed on the way.
#pragma once

#include <algorithm>
#include <type_traits>

#include "efft/cpu/kernels.h"
#include "efft/cpu/microkernel_bf16.h"
#include "efft/cpu/microkernel_f32.h"
#include "efft/cpu/transpose.h"

namespace efft::cpu {
namespace {

// Keys that queries see at once, at most; where there may be more, they come in blocks.
constexpr int64_t kWholeKeys = 1024, kKeyBlock = 512, kQueryBlock = 96;
// The same where products with positions join in: those of a block of keys should stay in the second-level cache.
constexpr int64_t kPositionKeys = 256, kPositionQueries = 384;

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

// Panels of kAttendColumns columns, the last one of whole vectors. stride: elements, may be negative.
template <typename Element>
void pack_panels(const Element* rows, int64_t stride, int64_t count, int64_t head_size, Element* out) {
  constexpr int64_t per_word = 4 / sizeof(Element);
  const int64_t words = head_size / per_word, word_stride = stride / per_word;
  const auto* from = reinterpret_cast<const uint32_t*>(rows);
  auto* to = reinterpret_cast<uint32_t*>(out);
  for (int64_t first = 0; first < count; first += kAttendColumns) {
    const int64_t rest = std::min(count - first, kAttendColumns), columns = round_up(rest, kWidth);
    transpose_words(from + first * word_stride, word_stride, rest, words, to, columns);
    to += columns * words;
  }
}

// c[r][column - first] = rows of `a` times columns [first, last) of panels of `width` columns in all; first and last
// are multiples of kWidth.
template <typename Element>
inline void multiply_panels(const Element* a, int64_t a_stride, int64_t rows, const Element* panels, int64_t width,
                            int64_t head_size, int64_t first, int64_t last, float* c, int64_t c_stride) {
  constexpr int64_t step = 4 / sizeof(Element);
  for (int64_t column = first; column < last;) {
    const int64_t start = column / kAttendColumns * kAttendColumns, inside = column - start;
    const int64_t columns = std::min(kAttendColumns, width - start), count = std::min(columns - inside, last - column);
    attend_tile_of<Element>(rows, count / kWidth)(a, a_stride, panels + start * head_size + inside * step, columns,
                                                  head_size / step, c + column - first, c_stride);
    column += count;
  }
}

}  // namespace
}  // namespace efft::cpu
