// Fills the table of kernels for the instruction set of the including file.
#pragma once

#include "efft/cpu/attention.h"
#include "efft/cpu/attention_amx.h"
#include "efft/cpu/kernels.h"
#include "efft/cpu/rows.h"
#include "efft/cpu/tiles.h"

namespace efft::cpu {
namespace {

inline int64_t attend_scratch(int64_t keys, int64_t head_size, int64_t positions) {
  const int64_t more = positions > 0 ? PositionScratch(keys, positions).bytes : 0;
  const int64_t bytes = AttendScratch(keys, head_size).bytes + more;
#if defined(__AMX_TILE__)
  return std::max(bytes, AmxAttendScratch(keys, head_size).bytes);
#else
  return bytes;
#endif
}

constexpr Kernels instantiate(const char* name) {
  Kernels table{};
  table.name = name;
  table.f32 = format_of<TilesF32>(Type::f32);
#if defined(__AMX_TILE__)
  table.s8 = amx_format_of<TilesAmxS8>(Type::s8);
  table.bf16 = amx_format_of<TilesAmxBf16>(Type::bf16);
  table.attend_bf16[0] = attend_amx<FullScore>;
  table.attend_bf16[1] = attend_amx<RelativeScore>;
  table.attend_bf16[2] = attend<bf16, DisentangledScore>;
#elif defined(__AVX512BF16__)
  table.s8 = format_of<TilesS8>(Type::s8);
  table.bf16 = format_of<TilesBf16>(Type::bf16);
  table.attend_bf16[0] = attend<bf16, FullScore>;
  table.attend_bf16[1] = attend<bf16, RelativeScore>;
  table.attend_bf16[2] = attend<bf16, DisentangledScore>;
#else
  table.bf16 = table.f32;
#endif
  table.attend_scratch = attend_scratch;
  table.attend_f32[0] = attend<float, FullScore>;
  table.attend_f32[1] = attend<float, RelativeScore>;
  table.attend_f32[2] = attend<float, DisentangledScore>;
  table.pack_positions = pack_positions;
  table.rotate = rotate;
  table.normalize = normalize;
  table.embed = embed;
  table.convert = convert;
  table.bias_step = bias_step;
  table.cast = cast;
  return table;
}

}  // namespace
}  // namespace efft::cpu
