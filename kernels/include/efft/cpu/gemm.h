// Matrix products over packed panels with a fused epilogue, for any register tile.
//
// A panel's slice of the depth stays in the second-level cache while the rows of the block stream past it; the sums
// of a block of rows lie in `scratch` between slices. The tile reads a row-major, so no operand is ever repacked.
// Slices are summed apart and then added, which also keeps fp32's rounding errors from growing with the depth.
#pragma once

#include <algorithm>

#include "efft/cpu/ahead.h"
#include "efft/cpu/kernels.h"
#include "efft/cpu/math.h"

namespace efft::cpu {
namespace {

constexpr int64_t kSliceSteps = 256;  // at most

// The sums of one column of vectors of a tile as values with their bias. What a column shares is loaded once.
struct FloatColumn {
  const float* sums;
  int64_t stride;
  Vec bias;
  Vec operator()(int64_t r) const { return load(sums + r * stride) + bias; }
};

struct FloatSums {
  const float* sums;
  int64_t stride;
  FloatColumn column(int64_t i, Vec bias) const { return {sums + i, stride, bias}; }
};

#if defined(__AVX512VNNI__)
struct IntegerColumn {
  const int32_t* sums;
  int64_t stride;
  const RowScale* rows;
  Vec scale, correction, bias;
  Vec operator()(int64_t r) const {
    const Vec sum = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + r * stride));
    return fma(sum * scale, splat(rows[r].scale), _mm512_fnmadd_ps(correction, splat(rows[r].shift), bias));
  }
};

struct IntegerSums {
  const int32_t* sums;
  int64_t stride;
  const RowScale* rows;
  const float* scales;
  const float* corrections;
  IntegerColumn column(int64_t i, Vec bias) const {
    return {sums + i, stride, rows, load(scales + i), load(corrections + i), bias};
  }
};
#endif

// A product as its panels finish it: a gate's half is written as it is, and what is to be multiplied by it reads it
// back from there, out of the nearest cache.
struct Half {
  const float* bias;
  const float* scales;       // s8
  const float* corrections;  // s8
  Pointwise pointwise;
  bool multiplies;
};

inline Half half_of(const Product& p, int64_t panel, int64_t columns) {
  const bool second = p.b.gated && panel % 2 != 0;
  const int64_t padded = (p.b.outputs + columns - 1) / columns * columns;
  return {p.bias + (second ? p.b.outputs : 0), p.b.scales + (second ? padded : 0),
          p.b.corrections + (second ? padded : 0), second ? Pointwise::none : p.pointwise, second};
}

// Activation, residual and the store, column of vectors by column.
template <typename Sums, typename Out, typename F>
inline void finish_with(const Product& p, const Half& half, const Sums& sums, int64_t row, int64_t rows, int64_t column,
                        int64_t count, Out* out, F step) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t left = count - i;
    const auto values = sums.column(i, load_some(half.bias + column + i, left));
    const float* residual = p.residual ? p.residual + row * p.residual_stride + column + i : nullptr;
    Out* to = out + row * p.out_stride + column + i;
    for (int64_t r = 0; r < rows; ++r) {
      Vec value = step(values(r));
      if (residual) value = value + load_some(residual + r * p.residual_stride, left);
      if (half.multiplies) value = value * load_some(to + r * p.out_stride, left);
      store_some(to + r * p.out_stride, value, left);
    }
  }
}

template <Precision precision, typename Sums, typename Out>
inline void finish_rows(const Product& p, const Half& half, const Sums& sums, int64_t row, int64_t rows, int64_t column,
                        int64_t count, Out* out) {
  with_step<precision>(half.pointwise,
                       [&](auto step) { finish_with(p, half, sums, row, rows, column, count, out, step); });
}

template <typename Sums>
inline void finish_tile(const Product& p, const Half& half, const Sums& sums, int64_t row, int64_t rows, int64_t column,
                        int64_t count) {
  if (p.out_type == Type::f32) {
    finish_rows<Precision::full>(p, half, sums, row, rows, column, count, static_cast<float*>(p.out));
  } else {
    finish_rows<Precision::brief>(p, half, sums, row, rows, column, count, static_cast<bf16*>(p.out));
  }
}

template <typename A, typename B, typename Sum>
using Tile = void (*)(const A* a, int64_t a_stride, const B* b, int64_t steps, Sum* c, bool accumulate, Ahead ahead);

template <typename Tiles, int R = Tiles::kRows>
inline Tile<typename Tiles::A, typename Tiles::B, typename Tiles::Sum> tile_of(int64_t rows) {
  if constexpr (R > 1) {
    if (rows < R) return tile_of<Tiles, R - 1>(rows);
  }
  return Tiles::template run<R>;
}

// Tiles is a policy: types A, B and Sum, kSlices, the fewest slices that its rounding wants, kRows, kColumns,
// kDepthStep, run<R>, a register tile of R rows, and sums, the functor that turns its sums into values
// of a Half.
template <typename Tiles>
void multiply(const Product& p, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1, float* scratch) {
  using B = typename Tiles::B;
  const auto* a = static_cast<const typename Tiles::A*>(p.a);
  const int64_t steps = (p.b.depth + Tiles::kDepthStep - 1) / Tiles::kDepthStep;
  const int64_t step_elements = int64_t{Tiles::kColumns} * Tiles::kDepthStep;
  const int64_t enough = (steps + kSliceSteps - 1) / kSliceSteps;
  const int64_t slices = enough < Tiles::kSlices ? Tiles::kSlices : enough;
  // Equal groups of rows: 16 rows are two tiles of 8, never 12 and 4.
  const int64_t groups = (row1 - row0 + Tiles::kRows - 1) / Tiles::kRows;
  const B* end_of_panels = static_cast<const B*>(p.b.data) + panel1 * steps * step_elements;
  for (int64_t panel = panel0; panel < panel1; ++panel) {
    const B* b = static_cast<const B*>(p.b.data) + panel * steps * step_elements;
    const int64_t column = panel / p.b.panels_of_column() * Tiles::kColumns;
    const Half half = half_of(p, panel, Tiles::kColumns);
    const int64_t count = p.b.outputs - column < Tiles::kColumns ? p.b.outputs - column : Tiles::kColumns;
    for (int64_t slice = 0; slice < slices; ++slice) {
      const int64_t first = slice * steps / slices, last = (slice + 1) * steps / slices;
      const char* next = reinterpret_cast<const char*>(b + last * step_elements);
      const int64_t left = reinterpret_cast<const char*>(end_of_panels) - next;
      const int64_t ahead = std::min<int64_t>(left, (last - first) * step_elements * static_cast<int64_t>(sizeof(B)));
      for (int64_t group = 0; group < groups; ++group) {
        const Ahead fetched(next + group * ahead / groups, next + (group + 1) * ahead / groups, last - first);
        const int64_t begin = row0 + group * (row1 - row0) / groups, end = row0 + (group + 1) * (row1 - row0) / groups;
        // One slice needs no more than a tile of scratch, which then stays in the first-level cache.
        auto* sums =
            reinterpret_cast<typename Tiles::Sum*>(scratch) + (slices == 1 ? 0 : begin - row0) * Tiles::kColumns;
        tile_of<Tiles>(end - begin)(a + begin * p.a_stride + first * Tiles::kDepthStep, p.a_stride,
                                    b + first * step_elements, last - first, sums, slice > 0, fetched);
        if (slice == slices - 1) {
          finish_tile(p, half, Tiles::sums(p, half, sums, begin, column), begin, end - begin, column, count);
        }
      }
    }
  }
}

}  // namespace
}  // namespace efft::cpu
