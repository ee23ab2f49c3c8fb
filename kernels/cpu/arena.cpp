#include "efft/cpu/arena.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "efft/cpu/workspace.h"

namespace efft::cpu {

namespace {

constexpr char kMagic[9] = "efftcpu1";

struct Plan {
  std::vector<ArenaEntry> entries;
  int64_t bytes;
};

Plan plan(const std::vector<MatrixSource>& sources) {
  Carver carver;
  carver.take(sizeof(ArenaHeader) + sources.size() * sizeof(ArenaEntry));
  std::vector<ArenaEntry> entries;
  for (const MatrixSource& s : sources) {
    const Format& format = format_of(s.type);
    const int64_t panels = format.panels(s.outputs);
    ArenaEntry entry{format.type, 0, s.outputs, s.depth, carver.take(panels * format.panel_bytes(s.depth)), 0, 0, 0};
    if (format.type == Type::s8) {
      entry.scales = carver.take(panels * format.columns * 4);
      entry.corrections = carver.take(panels * format.columns * 4);
      entry.factors = carver.take(s.depth * 4);
    }
    entries.push_back(entry);
  }
  return {entries, carver.used()};
}

void write_scales(const MatrixSource& s, const ArenaEntry& entry, char* block) {
  auto* scales = reinterpret_cast<float*>(block + entry.scales);
  auto* corrections = reinterpret_cast<float*>(block + entry.corrections);
  const int64_t padded = (entry.corrections - entry.scales) / 4;
  std::fill(scales, scales + padded, 0.0f);
  std::fill(corrections, corrections + padded, 0.0f);
  for (int64_t n = 0; n < s.outputs; ++n) {
    const auto* row = static_cast<const int8_t*>(s.data) + n * s.depth;
    int64_t sum = 0;
    for (int64_t k = 0; k < s.depth; ++k) sum += row[k];
    scales[n] = s.scales[n];
    corrections[n] = s.scales[n] * static_cast<float>(sum);
  }
  std::memcpy(block + entry.factors, s.factors, s.depth * 4);
}

// The weights that 8-bit integers stand for, for processors that cannot multiply those.
std::vector<float> dequantised(const MatrixSource& s) {
  std::vector<float> weights(s.outputs * s.depth);
  const auto* integers = static_cast<const int8_t*>(s.data);
  for (int64_t n = 0; n < s.outputs; ++n) {
    for (int64_t k = 0; k < s.depth; ++k) {
      weights[n * s.depth + k] = s.scales[n] * static_cast<float>(integers[n * s.depth + k]) * s.factors[k];
    }
  }
  return weights;
}

}  // namespace

const Format& format_of(Type type) {
  // fp16 products are computed in fp32: no processor served here multiplies it faster.
  if (type == Type::bf16) return kernels().bf16;
  return type == Type::s8 && kernels().s8.rows ? kernels().s8 : kernels().f32;
}

std::vector<MatrixSource> plain_sources(const ArenaShape& s, const void* matrices, Type type) {
  EncoderShape shape{};
  shape.layers = s.layers;
  shape.hidden = s.hidden;
  shape.embedding = s.embedding;
  shape.intermediate = s.intermediate;
  const MatrixLayout layout(shape);
  const int64_t element = type == Type::f32 ? 4 : 2;
  std::vector<MatrixSource> all;
  const auto add = [&](int64_t offset, int64_t outputs, int64_t depth) {
    all.push_back({static_cast<const char*>(matrices) + offset * element, type, outputs, depth, nullptr, nullptr});
  };
  if (s.projects()) add(layout.projection(), s.hidden, s.embedding);
  for (int64_t l = 0; l < s.layers; ++l) {
    add(layout.qkv(l), s.hidden, s.hidden);
    add(layout.qkv(l) + s.hidden * s.hidden, 2 * s.hidden, s.hidden);
    add(layout.attention_output(l), s.hidden, s.hidden);
    add(layout.intermediate(l), s.intermediate, s.hidden);
    add(layout.output(l), s.hidden, s.intermediate);
  }
  return all;
}

int64_t prepared_bytes(const std::vector<MatrixSource>& sources) { return plan(sources).bytes; }

void prepare(const ArenaShape& shape, const std::vector<MatrixSource>& sources, void* block, int threads) {
  const Plan layout = plan(sources);
  advise_huge_pages(block, layout.bytes);

  ArenaHeader header{};
  std::memcpy(header.magic, kMagic, sizeof header.magic);
  std::strncpy(header.instruction_set, kernels().name, sizeof header.instruction_set - 1);
  header.shape = shape;
  header.bytes = layout.bytes;
  header.entries = static_cast<int64_t>(sources.size());
  char* to = static_cast<char*>(block);
  std::memcpy(to, &header, sizeof header);
  std::memcpy(to + sizeof header, layout.entries.data(), layout.entries.size() * sizeof(ArenaEntry));

  for (size_t i = 0; i < sources.size(); ++i) {
    const ArenaEntry& entry = layout.entries[i];
    MatrixSource s = sources[i];
    const Format& format = format_of(s.type);
    std::vector<float> widened;
    if (entry.type == Type::s8) {
      write_scales(s, entry, to);
    } else if (s.type == Type::s8) {
      widened = dequantised(s);
      s.data = widened.data();
      s.type = Type::f32;
    }
    const int64_t panels = format.panels(s.outputs), bytes = format.panel_bytes(s.depth);
#pragma omp parallel for num_threads(threads)
    for (int64_t panel = 0; panel < panels; ++panel) {
      format.pack(s.data, s.type, s.outputs, s.depth, panel, to + entry.data + panel * bytes);
    }
  }
}

Arena Arena::checked(const void* block, int64_t bytes, const ArenaShape& shape) {
  ArenaHeader header;
  if (bytes < int64_t{sizeof header}) throw std::runtime_error("matrices: too short to be a prepared arena");
  std::memcpy(&header, block, sizeof header);
  if (std::memcmp(header.magic, kMagic, sizeof header.magic) != 0) {
    throw std::runtime_error("matrices: bytes that efft::prepare did not make for the CPU");
  }
  const std::string made_for(header.instruction_set, strnlen(header.instruction_set, sizeof header.instruction_set));
  if (made_for != kernels().name) {
    throw std::runtime_error("matrices: prepared for " + made_for + ", this process runs " + kernels().name);
  }
  const ArenaShape& s = header.shape;
  if (s.layers != shape.layers || s.hidden != shape.hidden || s.embedding != shape.embedding ||
      s.intermediate != shape.intermediate || header.bytes != bytes) {
    throw std::runtime_error("matrices: prepared for another encoder shape");
  }
  return Arena(block);
}

Type Arena::activation_type() const {
  for (int64_t i = 0; i < header().entries; ++i) {
    if (entries()[i].type == Type::f32) return Type::f32;
  }
  return Type::bf16;
}

}  // namespace efft::cpu
