#include "efft/cpu/arena.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <stdexcept>
#include <string>

#include "efft/cpu/parallel.h"
#include "efft/cpu/workspace.h"

namespace efft::cpu {

namespace {

constexpr char kMagic[9] = "efftcpu3";

// A piece in which a matrix is stored; gated: its first half of outputs is the gate of the second.
struct Piece {
  WeightView view;
  bool gated;
  // As many as the result has columns.
  int64_t outputs() const { return gated ? view.outputs / 2 : view.outputs; }
  int64_t halves() const { return gated ? 2 : 1; }
  WeightView half(int64_t i) const { return view.rows(i * outputs(), outputs()); }
};

// Queries and others, of which one may be empty.
std::vector<Piece> parts_of(const std::vector<Slot>& slots, const std::vector<WeightView>& matrices) {
  std::vector<Piece> parts;
  for (const Slot& slot : slots) {
    if (slot.kind != SlotKind::matrix) continue;
    const WeightView& whole = matrices[slot.index];
    parts.push_back({whole.rows(0, slot.queries), false});
    parts.push_back({whole.rows(slot.queries, whole.outputs - slot.queries), slot.gated});
  }
  return parts;
}

struct Plan {
  std::vector<ArenaEntry> entries;
  int64_t bytes;
};

Plan plan(const std::vector<Piece>& parts) {
  Carver carver;
  carver.take(sizeof(ArenaHeader) + parts.size() * sizeof(ArenaEntry));
  std::vector<ArenaEntry> entries;
  for (const Piece& piece : parts) {
    const WeightView& part = piece.view;
    const Format& format = format_of(part.type);
    const int64_t panels = format.panels(piece.outputs()) * piece.halves();
    ArenaEntry entry{format.type, piece.gated, part.step, part.zero, piece.outputs(), part.inputs, 0, 0, 0, 0};
    if (part.outputs > 0) {
      entry.data = carver.take(panels * format.panel_bytes(part.inputs));
      if (format.type == Type::s8) {
        entry.scales = carver.take(panels * format.columns * 4);
        entry.corrections = carver.take(panels * format.columns * 4);
        entry.factors = carver.take(part.inputs * 4);
      }
    }
    entries.push_back(entry);
  }
  return {entries, carver.used()};
}

// One after the other for each half, padded to whole panels.
void write_scales(const Piece& piece, const ArenaEntry& entry, char* block) {
  auto* scales = reinterpret_cast<float*>(block + entry.scales);
  auto* corrections = reinterpret_cast<float*>(block + entry.corrections);
  const Format& format = format_of(Type::s8);
  const int64_t padded = format.panels(piece.outputs()) * format.columns;
  std::fill(scales, scales + piece.halves() * padded, 0.0f);
  std::fill(corrections, corrections + piece.halves() * padded, 0.0f);
  for (int64_t half = 0; half < piece.halves(); ++half) {
    const WeightView s = piece.half(half);
    for (int64_t n = 0; n < s.outputs; ++n) {
      const auto* row = static_cast<const int8_t*>(s.data) + n * s.inputs;
      int64_t sum = 0;
      for (int64_t k = 0; k < s.inputs; ++k) sum += row[k];
      scales[half * padded + n] = s.scales[n];
      corrections[half * padded + n] = s.scales[n] * static_cast<float>(sum);
    }
  }
  std::memcpy(block + entry.factors, piece.view.factors, piece.view.inputs * 4);
}

// E4M3 of "FP8 formats for deep learning" (Micikevicius et al., 2022): no infinities, one NaN of either sign.
float of_e4m3(uint8_t bits) {
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float size =
      exponent == 0 ? std::ldexp(static_cast<float>(fraction), -9) : std::ldexp(1.0f + fraction / 8.0f, exponent - 7);
  return bits & 0x80 ? -size : size;
}

// The weights that 8-bit numbers stand for, for processors that cannot multiply those.
std::vector<float> dequantised(const WeightView& s) {
  float numbers[256];
  for (int bits = 0; bits < 256; ++bits)
    numbers[bits] = s.type == Type::s8 ? static_cast<float>(static_cast<int8_t>(bits)) : of_e4m3(bits);
  std::vector<float> weights(s.outputs * s.inputs);
  const auto* bits = static_cast<const uint8_t*>(s.data);
  for (int64_t n = 0; n < s.outputs; ++n) {
    for (int64_t k = 0; k < s.inputs; ++k) {
      weights[n * s.inputs + k] = s.scales[n] * numbers[bits[n * s.inputs + k]] * s.factors[k];
    }
  }
  return weights;
}

}  // namespace

const Format& format_of(Type type) {
  // fp16 products are computed in fp32: no processor served here multiplies it faster.
  // No processor multiplies e4m3 either; its weights fit bf16.
  if (type == Type::bf16 || type == Type::e4m3) return kernels().bf16;
  return type == Type::s8 && kernels().s8.rows ? kernels().s8 : kernels().f32;
}

std::vector<WeightView> plain_matrices(const std::vector<Slot>& slots, const void* arena, Type type) {
  std::vector<WeightView> all;
  for (const Slot& slot : slots) {
    if (slot.kind != SlotKind::matrix) continue;
    WeightView view;
    view.data = static_cast<const char*>(arena) + slot.offset * bytes_of(type);
    view.type = type;
    view.outputs = slot.rows;
    view.inputs = slot.columns;
    all.push_back(view);
  }
  return all;
}

int64_t prepared_bytes(const std::vector<Slot>& slots, const std::vector<WeightView>& matrices) {
  return plan(parts_of(slots, matrices)).bytes;
}

void prepare(const std::vector<Slot>& slots, const std::vector<WeightView>& matrices, void* block, int threads) {
  const auto parts = parts_of(slots, matrices);
  const Plan layout = plan(parts);
  advise_huge_pages(block, layout.bytes);

  ArenaHeader header{};
  std::memcpy(header.magic, kMagic, sizeof header.magic);
  std::strncpy(header.instruction_set, kernels().name, sizeof header.instruction_set - 1);
  header.bytes = layout.bytes;
  header.entries = static_cast<int64_t>(parts.size());
  char* to = static_cast<char*>(block);
  std::memcpy(to, &header, sizeof header);
  std::memcpy(to + sizeof header, layout.entries.data(), layout.entries.size() * sizeof(ArenaEntry));

  for (size_t i = 0; i < parts.size(); ++i) {
    const ArenaEntry& entry = layout.entries[i];
    Piece piece = parts[i];
    WeightView& s = piece.view;
    if (s.outputs == 0) continue;
    const Format& format = format_of(s.type);
    std::vector<float> widened;
    if (entry.type == Type::s8) {
      write_scales(piece, entry, to);
    } else if (bytes_of(s.type) == 1) {
      widened = dequantised(s);
      s.data = widened.data();
      s.type = Type::f32;
    }
    const int64_t halves = piece.halves(), bytes = format.panel_bytes(s.inputs);
    Team::run(threads, 1, [&](Member& member) {
      member.phase(halves * format.panels(piece.outputs()), [&](int64_t panel) {
        const WeightView half = piece.half(panel % halves);
        format.pack(half.data, half.type, half.outputs, half.inputs, panel / halves, to + entry.data + panel * bytes);
      });
    });
  }
}

Prepared Prepared::checked(const void* block, int64_t bytes, const std::vector<Slot>& slots) {
  ArenaHeader header;
  if (bytes < int64_t{sizeof header}) throw std::runtime_error("matrices: too short to be a prepared arena");
  std::memcpy(&header, block, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof header.magic) != 0) {
    throw std::runtime_error("matrices: bytes that were not prepared for the CPU");
  }
  const std::string made_for(header.instruction_set, strnlen(header.instruction_set, sizeof header.instruction_set));
  if (made_for != kernels().name) {
    throw std::runtime_error("matrices: prepared for " + made_for + ", this process runs " + kernels().name);
  }
  const Prepared found(block);
  int64_t expected = 0;
  bool same = header.bytes == bytes && bytes >= int64_t{sizeof header} + header.entries * int64_t{sizeof(ArenaEntry)};
  for (const Slot& slot : slots) {
    if (slot.kind != SlotKind::matrix) continue;
    expected += 2;
    if (!same || expected > header.entries) continue;
    const Panels queries = found.panels(slot, Part::queries), others = found.panels(slot);
    same = queries.outputs == slot.queries && others.gated == slot.gated &&
           queries.outputs + (slot.gated ? 2 : 1) * others.outputs == slot.rows && others.depth == slot.columns;
  }
  if (!same || expected != header.entries) throw std::runtime_error("matrices: prepared for another encoder");
  return found;
}

Type Prepared::activation_type() const {
  for (int64_t i = 0; i < header().entries; ++i) {
    if (entries()[i].outputs > 0 && entries()[i].type == Type::f32) return Type::f32;
  }
  return Type::bf16;
}

}  // namespace efft::cpu
