// Reads the archived 8-bit form.
#include "efft/quantised.h"

#include <cstring>
#include <stdexcept>
#include <string>

#include "efft/cpu/arena.h"

namespace efft::cpu {

namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error("matrices: " + why); }

class Reader {
 public:
  Reader(const void* bytes, int64_t size) : bytes_(static_cast<const char*>(bytes)), size_(size) {
    if (size < int64_t{sizeof header_}) refuse("too short to be a quantised arena");
    std::memcpy(&header_, bytes, sizeof header_);
    if (std::memcmp(header_.magic, kQuantisedMagic, sizeof header_.magic) != 0) refuse("not a quantised arena");
  }

  void check_shape(const ArenaShape& s) const {
    if (header_.layers != s.layers || header_.hidden != s.hidden || header_.embedding != s.embedding ||
        header_.intermediate != s.intermediate || header_.entries != s.projects() + 4 * s.layers) {
      refuse("quantised for another encoder shape");
    }
    at(sizeof header_, header_.entries * int64_t{sizeof(QuantisedEntry)});
  }

  MatrixSource matrix(int64_t index, int64_t outputs, int64_t inputs) const {
    QuantisedEntry e;
    std::memcpy(&e, bytes_ + sizeof header_ + index * sizeof e, sizeof e);
    if (e.outputs != outputs || e.inputs != inputs) refuse("entry " + std::to_string(index) + " has another size");
    if (e.type == QuantisedType::bf16) return {at(e.data, outputs * inputs * 2), Type::bf16, outputs, inputs, {}, {}};
    if (e.type != QuantisedType::s8) refuse("entry " + std::to_string(index) + " has an unknown type");
    return {at(e.data, outputs * inputs),
            Type::s8,
            outputs,
            inputs,
            reinterpret_cast<const float*>(at(e.scales, outputs * 4)),
            reinterpret_cast<const float*>(at(e.factors, inputs * 4))};
  }

 private:
  const char* at(int64_t offset, int64_t length) const {
    if (offset < 0 || offset % 8 != 0 || length > size_ || offset > size_ - length) refuse("an entry lies outside");
    return bytes_ + offset;
  }

  const char* bytes_;
  int64_t size_;
  QuantisedHeader header_;
};

// Outputs [first, first + count) of a matrix.
MatrixSource slice(MatrixSource s, int64_t first, int64_t count) {
  const int64_t element = s.type == Type::s8 ? 1 : 2;
  s.data = static_cast<const char*>(s.data) + first * s.depth * element;
  if (s.scales) s.scales += first;
  s.outputs = count;
  return s;
}

}  // namespace

bool is_quantised(const void* bytes, int64_t size) {
  return size >= int64_t{sizeof(QuantisedHeader)} && std::memcmp(bytes, kQuantisedMagic, 8) == 0;
}

std::vector<MatrixSource> quantised_sources(const ArenaShape& s, const void* bytes, int64_t size) {
  const Reader reader(bytes, size);
  reader.check_shape(s);
  std::vector<MatrixSource> all;
  int64_t index = 0;
  if (s.projects()) all.push_back(reader.matrix(index++, s.hidden, s.embedding));
  for (int64_t l = 0; l < s.layers; ++l) {
    const MatrixSource qkv = reader.matrix(index++, 3 * s.hidden, s.hidden);
    all.push_back(slice(qkv, 0, s.hidden));
    all.push_back(slice(qkv, s.hidden, 2 * s.hidden));
    all.push_back(reader.matrix(index++, s.hidden, s.hidden));
    all.push_back(reader.matrix(index++, s.intermediate, s.hidden));
    all.push_back(reader.matrix(index++, s.hidden, s.intermediate));
  }
  return all;
}

}  // namespace efft::cpu
