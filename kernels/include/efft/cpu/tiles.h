// The register tiles of the linear layers, per instruction set, and the packing of their panels.
//
// Shapes: 24 sums and 3 columns fill 29 of AVX-512's 32 registers; 12 sums and 2 columns 15 of AVX2's 16.
#pragma once

#include <type_traits>

#include "efft/cpu/gemm.h"
#include "efft/cpu/gemm_amx.h"
#include "efft/cpu/microkernel_bf16.h"
#include "efft/cpu/microkernel_f32.h"
#include "efft/cpu/microkernel_s8.h"
#include "efft/cpu/rows.h"

namespace efft::cpu {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 8, kTileVectors = 3;
#elif defined(__AVX2__)
constexpr int kTileRows = 6, kTileVectors = 2;
#else
constexpr int kTileRows = 4, kTileVectors = 1;
#endif

struct TilesF32 {
  using A = float;
  using B = float;
  using Sum = float;
  static constexpr int kRows = kTileRows, kColumns = kTileVectors * kWidth, kDepthStep = 1, kWordElements = 1,
                       kSlices = 4;
  template <int R>
  static void run(const float* a, int64_t a_stride, const float* b, int64_t steps, float* c, bool accumulate,
                  Ahead ahead) {
    tile_f32<R, kTileVectors>(a, a_stride, b, kColumns, steps, c, kColumns, accumulate, ahead);
  }
  static FloatSums sums(const Product&, const Half&, const float* sums, int64_t, int64_t) { return {sums, kColumns}; }
};

#if defined(__AVX512BF16__)
struct TilesBf16 {
  using A = bf16;
  using B = bf16;
  using Sum = float;
  static constexpr int kRows = kTileRows, kColumns = kTileVectors * kWidth, kDepthStep = 2, kWordElements = 2,
                       kSlices = 1;
  template <int R>
  static void run(const bf16* a, int64_t a_stride, const bf16* b, int64_t steps, float* c, bool accumulate,
                  Ahead ahead) {
    tile_bf16<R, kTileVectors>(a, a_stride, b, kColumns, steps, c, kColumns, accumulate, ahead);
  }
  static FloatSums sums(const Product&, const Half&, const float* sums, int64_t, int64_t) { return {sums, kColumns}; }
};
#endif

#if defined(__AVX512VNNI__)
struct TilesS8 {
  using A = uint8_t;
  using B = int8_t;
  using Sum = int32_t;
  static constexpr int kRows = kTileRows, kColumns = kTileVectors * kWidth, kDepthStep = 4, kWordElements = 4,
                       kSlices = 1;
  template <int R>
  static void run(const uint8_t* a, int64_t a_stride, const int8_t* b, int64_t steps, int32_t* c, bool accumulate,
                  Ahead ahead) {
    tile_s8<R, kTileVectors>(a, a_stride, b, steps, c, kColumns, accumulate, ahead);
  }
  static IntegerSums sums(const Product& p, const Half& half, const int32_t* sums, int64_t row, int64_t column) {
    return {sums, kColumns, p.a_scales + row, half.scales + column, half.corrections + column};
  }
};
#endif

#if defined(__AMX_TILE__)
struct TilesAmxBf16 {
  using A = bf16;
  using B = bf16;
  using Sum = float;
  static constexpr int kRows = kAmxGroupRows, kColumns = kAmxColumns, kDepthStep = 32, kWordElements = 2;
  static FloatSums sums(const Product&, const Half&, const float* sums, int64_t, int64_t) { return {sums, kColumns}; }
};

struct TilesAmxS8 {
  using A = uint8_t;
  using B = int8_t;
  using Sum = int32_t;
  static constexpr int kRows = kAmxGroupRows, kColumns = kAmxColumns, kDepthStep = 64, kWordElements = 4;
  static IntegerSums sums(const Product& p, const Half& half, const int32_t* sums, int64_t row, int64_t column) {
    return {sums, kColumns, p.a_scales + row, half.scales + column, half.corrections + column};
  }
};
#endif

template <typename Tiles, typename From>
void pack_panel(const From* matrix, int64_t outputs, int64_t depth, int64_t panel, typename Tiles::B* out) {
  constexpr int columns = Tiles::kColumns, step = Tiles::kDepthStep, word = Tiles::kWordElements;
  const int64_t padded = (depth + step - 1) / step * step;
  for (int64_t n = 0; n < columns; ++n) {
    const int64_t row = panel * columns + n;
    for (int64_t k = 0; k < padded; ++k) {
      const bool inside = row < outputs && k < depth;
      typename Tiles::B* to = out + (k / word * columns + n) * word + k % word;
      if constexpr (std::is_same_v<From, typename Tiles::B>) {
        *to = inside ? matrix[row * depth + k] : From{};
      } else {
        from_float(inside ? to_float(matrix[row * depth + k]) : 0.0f, to);
      }
    }
  }
}

template <typename Tiles>
void pack(const void* matrix, Type from, int64_t outputs, int64_t depth, int64_t panel, void* out) {
  auto* to = static_cast<typename Tiles::B*>(out);
  if constexpr (std::is_same_v<typename Tiles::B, int8_t>) {
    pack_panel<Tiles>(static_cast<const int8_t*>(matrix), outputs, depth, panel, to);
  } else {
    with_type(matrix, from, [&](const auto* source) { pack_panel<Tiles>(source, outputs, depth, panel, to); });
  }
}

// Bytes of operand in a block of rows. Of deep fp32 products 192 rows outgrew second-level caches of 1 and 2 MiB; 256
// and 512 KiB are a little slower. AMX's tiles ask for weights several times as fast, and want the rows.
constexpr int64_t kBlockBytes = 384 << 10, kAmxBlockBytes = 2 << 20;

template <typename Tiles>
constexpr Format format_of(Type type) {
  return {type, Tiles::kRows, Tiles::kColumns, Tiles::kDepthStep, kBlockBytes, pack<Tiles>, multiply<Tiles>};
}

#if defined(__AMX_TILE__)
template <typename Tiles>
constexpr Format amx_format_of(Type type) {
  return {type, Tiles::kRows, Tiles::kColumns, Tiles::kDepthStep, kAmxBlockBytes, pack<Tiles>, multiply_amx<Tiles>};
}
#endif

}  // namespace
}  // namespace efft::cpu
