// Matrix products over packed panels on AMX tiles.
//
// A slice of a panel stays in the first-level cache while groups of 32 rows stream past it. Arithmetic is so fast that
// the epilogue would take as long again; so a tile is finished between the steps of the next one, where the vector
// units are idle, and the slice after the current one is fetched meanwhile.
#pragma once

#if defined(__AMX_TILE__)

#include <algorithm>

#include "efft/cpu/gemm.h"
#include "efft/cpu/microkernel_amx.h"

namespace efft::cpu {
namespace {

constexpr int64_t kAmxGroupRows = 2 * kAmxTileRows;

// A panel of 12 steps, 24 KiB, still shares the first-level cache with a group of rows; the sums that a deeper one
// leaves between its slices need room there too.
inline int64_t amx_slices(int64_t steps) { return steps <= 12 ? 1 : (steps + 7) / 8; }

inline void store_pair(float* to, Vec first, Vec second) {
  store(to, first);
  store(to + kWidth, second);
}

// One store of a whole cache line.
inline void store_pair(bf16* to, Vec first, Vec second) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(second, first));
}

// finish_tile() for the full width of a tile, row by row.
template <typename Tiles, typename Out, typename F>
void finish_full(const Product& p, const Half& half, const typename Tiles::Sum* sums, int64_t row, int64_t rows,
                 int64_t column, F step) {
  const auto all = Tiles::sums(p, half, sums, row, column);
  const float* bias = half.bias + column;
  const auto first = all.column(0, load(bias)), second = all.column(kWidth, load(bias + kWidth));
  Out* out = static_cast<Out*>(p.out) + row * p.out_stride + column;
  if (p.residual) {
    const float* residual = p.residual + row * p.residual_stride + column;
    for (int64_t r = 0; r < rows; ++r, out += p.out_stride, residual += p.residual_stride) {
      store_pair(out, step(first(r)) + load(residual), step(second(r)) + load(residual + kWidth));
    }
  } else if (half.multiplies) {
    for (int64_t r = 0; r < rows; ++r, out += p.out_stride) {
      store_pair(out, step(first(r)) * load(out), step(second(r)) * load(out + kWidth));
    }
  } else {
    for (int64_t r = 0; r < rows; ++r, out += p.out_stride) store_pair(out, step(first(r)), step(second(r)));
  }
}

template <typename Tiles, typename Out, typename F>
void finish_full(const Product& p, const Half& half, const typename Tiles::Sum* sums, int64_t row, int64_t rows,
                 int64_t column) {
  finish_full<Tiles, Out>(p, half, sums, row, rows, column, F{});
}

// Finishes one tile at a time, a few rows at each call.
template <typename Tiles>
class Finisher {
  using Sum = typename Tiles::Sum;
  using Full = void (*)(const Product&, const Half&, const Sum* sums, int64_t row, int64_t rows, int64_t column);

 public:
  explicit Finisher(const Product& product)
      : product_(product), full_{full(product.pointwise), full(Pointwise::none)} {}

  // Call with the tile before finished.
  void start(const Half& half, const Sum* sums, int64_t row, int64_t rows, int64_t column, int64_t count) {
    half_ = half;
    sums_ = sums;
    row_ = row;
    column_ = column;
    count_ = count;
    left_ = rows;
  }

  // Up to `rows` more rows.
  void advance(int64_t rows) {
    rows = std::min(rows, left_);
    if (rows == 0) return;
    if (count_ == Tiles::kColumns) {
      full_[half_.multiplies](product_, half_, sums_, row_, rows, column_);
    } else {
      finish_tile(product_, half_, Tiles::sums(product_, half_, sums_, row_, column_), row_, rows, column_, count_);
    }
    sums_ += rows * Tiles::kColumns;
    row_ += rows;
    left_ -= rows;
  }

  void complete() { advance(left_); }

 private:
  Full full(Pointwise step) const {
    return product_.out_type == Type::f32 ? full_as<float>(step) : full_as<bf16>(step);
  }

  template <typename Out>
  static Full full_as(Pointwise pointwise) {
    constexpr Precision precision = std::is_same_v<Out, float> ? Precision::full : Precision::brief;
    Full found = nullptr;
    with_step<precision>(pointwise, [&](auto step) { found = finish_full<Tiles, Out, decltype(step)>; });
    return found;
  }

  const Product& product_;
  const Full full_[2];  // by whether a half multiplies
  Half half_{};
  const Sum* sums_ = nullptr;
  int64_t row_ = 0, left_ = 0, column_ = 0, count_ = 0;
};

// Asks for memory ahead of its use, a few lines at a time.
class Fetcher {
 public:
  void start(const char* from, const char* end, int64_t lines) {
    at_ = from;
    end_ = std::min(end, from + lines * 64);
  }
  void advance(int64_t lines) {
    for (const char* stop = std::min(end_, at_ + lines * 64); at_ < stop; at_ += 64) _mm_prefetch(at_, _MM_HINT_T1);
  }

 private:
  const char *at_ = nullptr, *end_ = nullptr;
};

// A policy as for multiply(), with kDepthStep elements in 64 bytes of a row. Tiles of 16 rows always end within the
// rows that exist, [0, row1): where fewer are left, a tile begins in rows that others compute too.
template <typename Tiles>
class AmxMultiply {
  using A = typename Tiles::A;
  using Sum = typename Tiles::Sum;
  static constexpr int64_t kStepBytes = kTileRowBytes * kAmxColumns;
  static constexpr int64_t kSumStride = kAmxColumns * sizeof(Sum);

 public:
  AmxMultiply(const Product& p, int64_t row0, int64_t row1, void* scratch)
      : p_(p),
        row0_(row0),
        row1_(row1),
        tile_rows_(std::min(row1, kAmxTileRows)),
        a_stride_(p.a_stride * static_cast<int64_t>(sizeof(A))),
        steps_((p.b.depth + Tiles::kDepthStep - 1) / Tiles::kDepthStep),
        tail_bytes_(p.b.depth * static_cast<int64_t>(sizeof(A)) % kTileRowBytes),
        slices_(amx_slices(steps_)),
        tiles_((row1 - row0 + kAmxTileRows - 1) / kAmxTileRows),
        groups_((tiles_ + 1) / 2),
        sums_(static_cast<Sum*>(scratch)),
        finisher_(p) {}

  void run(int64_t panel0, int64_t panel1) {
    const TileRegisters registers(tile_rows_);
    const char* data = static_cast<const char*>(p_.b.data);
    end_ = data + panel1 * steps_ * kStepBytes;
    // Sums lie in a ring of tiles, one more than are needed at a time: the one before may be unfinished.
    const int64_t ring = slices_ == 1 ? 2 : groups_ + 1;
    int64_t slot = 0;
    for (int64_t panel = panel0; panel < panel1; ++panel) {
      const int64_t column = panel / p_.b.panels_of_column() * kAmxColumns;
      const Half half = half_of(p_, panel, kAmxColumns);
      const int64_t count = std::min(p_.b.outputs - column, kAmxColumns);
      for (int64_t slice = 0; slice < slices_; ++slice) {
        const int64_t first = slice * steps_ / slices_, last = (slice + 1) * steps_ / slices_;
        const char* b = data + (panel * steps_ + last) * kStepBytes;
        const int64_t lines = (last - first) * kStepBytes / 64;
        fetcher_.start(b, end_, lines);
        fetch_ = (lines + groups_ * (last - first) - 1) / (groups_ * (last - first));
        for (int64_t group = 0; group < groups_; ++group) {
          const int64_t begin = row0_ + group * tiles_ / groups_ * kAmxTileRows;
          const int64_t end = std::min(row0_ + (group + 1) * tiles_ / groups_ * kAmxTileRows, row1_);
          Sum* sums = sums_ + (slot + group) % ring * kAmxGroupRows * kAmxColumns;
          const int64_t start = end - begin > kAmxTileRows ? begin : end - tile_rows_;
          const char* panel_data = data + panel * steps_ * kStepBytes;
          if (end - begin > kAmxTileRows) {
            tile<true>(start, end - tile_rows_, panel_data, first, last, sums);
          } else {
            tile<false>(start, start, panel_data, first, last, sums);
          }
          if (slice == slices_ - 1) {
            finisher_.complete();
            finisher_.start(half, sums + (begin - start) * kAmxColumns, begin, end - begin, column, count);
          }
        }
      }
      slot += groups_;
    }
    finisher_.complete();
  }

 private:
  template <bool two_groups>
  void tile(int64_t row, int64_t second_row, const char* b, int64_t first, int64_t last, Sum* sums) {
    const char* a = static_cast<const char*>(p_.a);
    const TileRows rows{a + row * a_stride_, a + second_row * a_stride_, a_stride_};
    char *to = reinterpret_cast<char*>(sums), *second = to + (second_row - row) * kSumStride;
    if (first == 0) {
      clear_sums<two_groups>();
    } else {
      load_sums<two_groups>(to, second, kSumStride);
    }
    const int64_t whole = last == steps_ && tail_bytes_ ? last - 1 : last;
    const int64_t finish = (kAmxGroupRows + last - first - 1) / (last - first);
    for (int64_t k = first; k < whole; ++k) {
      tile_step<A, two_groups>(rows, k * kTileRowBytes, b + k * kStepBytes, 2 * kTileRowBytes);
      finisher_.advance(finish);
      fetcher_.advance(fetch_);
    }
    if (whole < last) {
      alignas(64) char tails[kAmxGroupRows * kTileRowBytes];
      char* second_tail = tails + kAmxTileRows * kTileRowBytes;
      copy_tail(rows.first + whole * kTileRowBytes, a_stride_, tail_bytes_, tile_rows_, tails);
      if (two_groups) {
        copy_tail(rows.second + whole * kTileRowBytes, a_stride_, tail_bytes_, tile_rows_, second_tail);
      }
      TileRegisters::written();
      tile_step<A, two_groups>({tails, second_tail, kTileRowBytes}, 0, b + whole * kStepBytes, 2 * kTileRowBytes);
    }
    store_sums<two_groups>(to, second, kSumStride);
  }

  const Product& p_;
  int64_t row0_, row1_, tile_rows_, a_stride_, steps_, tail_bytes_, slices_, tiles_, groups_;
  int64_t fetch_ = 0;
  Sum* sums_;
  const char* end_ = nullptr;
  Finisher<Tiles> finisher_;
  Fetcher fetcher_;
};

template <typename Tiles>
void multiply_amx(const Product& p, int64_t row0, int64_t row1, int64_t panel0, int64_t panel1, float* scratch) {
  AmxMultiply<Tiles>(p, row0, row1, scratch).run(panel0, panel1);
}

}  // namespace
}  // namespace efft::cpu

#endif
