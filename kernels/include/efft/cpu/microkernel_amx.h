// Products on AMX tiles: up to 32 rows times 32 columns, sums in four of the eight tile registers.
//
// A tile register holds 16 rows of 64 bytes. One step of the depth is 64 bytes of a row of `a` (32 bf16 or 64 eight-bit
// elements) and 16 rows of `b`, whose panels' layout, [pair or quad][column], is already the one that the instruction
// reads. Registers 0-3 are sums, 4 and 5 rows of a, 6 and 7 columns of b.
#pragma once

#if defined(__AMX_TILE__)

#include <atomic>
#include <type_traits>

#include "efft/cpu/simd.h"

namespace efft::cpu {
namespace {

constexpr int64_t kTileRowBytes = 64;
constexpr int64_t kAmxTileRows = 16;
constexpr int64_t kAmxColumns = 32;

// While it lives, this thread's tile registers are configured: `rows` (at most 16) rows of a and of the sums. Without
// it they are in the state that other libraries expect, and the system saves nothing of them.
class TileRegisters {
 public:
  explicit TileRegisters(int64_t rows) {
    alignas(64) Configuration c{};
    c.palette = 1;
    for (int i = 0; i < 8; ++i) {
      c.row_bytes[i] = kTileRowBytes;
      c.rows[i] = static_cast<uint8_t>(i < 6 ? rows : kAmxTileRows);
    }
    written();
    _tile_loadconfig(&c);
    written();
  }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

  // What was stored so far is in memory before the tile instructions that follow: the compiler does not know that
  // they read it.
  static void written() { std::atomic_signal_fence(std::memory_order_seq_cst); }

 private:
  struct Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
};

// Two groups of up to 16 rows of a; the second may overlap the first.
struct TileRows {
  const char* first;
  const char* second;
  int64_t stride;  // bytes
};

// One step of the depth. b_stride: bytes between the rows of b, whose 32 columns take 128 bytes.
template <typename Element, bool two_groups>
inline void tile_step(const TileRows& a, int64_t offset, const char* b, int64_t b_stride) {
  _tile_loadd(6, b, b_stride);
  _tile_loadd(4, a.first + offset, a.stride);
  _tile_loadd(7, b + kTileRowBytes, b_stride);
  if constexpr (std::is_same_v<Element, bf16>) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  } else {
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
  }
  if constexpr (two_groups) {
    _tile_loadd(5, a.second + offset, a.stride);
    if constexpr (std::is_same_v<Element, bf16>) {
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    } else {
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
  }
}

template <bool two_groups>
inline void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (two_groups) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

// Sums of 32 columns of four bytes each; `second` is where the second group of rows lies.
template <bool two_groups>
inline void load_sums(const char* sums, const char* second, int64_t stride) {
  _tile_loadd(0, sums, stride);
  _tile_loadd(1, sums + kTileRowBytes, stride);
  if constexpr (two_groups) {
    _tile_loadd(2, second, stride);
    _tile_loadd(3, second + kTileRowBytes, stride);
  }
}

template <bool two_groups>
inline void store_sums(char* sums, char* second, int64_t stride) {
  _tile_stored(0, sums, stride);
  _tile_stored(1, sums + kTileRowBytes, stride);
  if constexpr (two_groups) {
    _tile_stored(2, second, stride);
    _tile_stored(3, second + kTileRowBytes, stride);
  }
}

// The last, incomplete step of a row of a, as rows of whole steps that end in zeros; nothing behind the row is read.
inline void copy_tail(const char* from, int64_t stride, int64_t bytes, int64_t rows, char* to) {
  const __mmask64 mask = (uint64_t{1} << bytes) - 1;
  for (int64_t r = 0; r < rows; ++r) {
    _mm512_store_si512(to + r * kTileRowBytes, _mm512_maskz_loadu_epi8(mask, from + r * stride));
  }
}

}  // namespace
}  // namespace efft::cpu

#endif
