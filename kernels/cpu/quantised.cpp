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

  void check_encoder(const EncoderSpec& s, int64_t matrices) const {
    if (header_.layers != s.layers || header_.hidden != s.hidden || header_.embedding != s.embedding ||
        header_.intermediate != s.intermediate || header_.entries != matrices) {
      refuse("quantised for another encoder");
    }
    at(sizeof header_, header_.entries * int64_t{sizeof(QuantisedEntry)});
  }

  WeightView matrix(const Slot& slot) const {
    QuantisedEntry e;
    std::memcpy(&e, bytes_ + sizeof header_ + slot.index * sizeof e, sizeof e);
    if (e.outputs != slot.rows || e.inputs != slot.columns) refuse("entry " + slot.name + " has another size");
    if (e.type != QuantisedType::bf16 && e.type != QuantisedType::s8)
      refuse("entry " + slot.name + " has an unknown type");
    WeightView view;
    view.type = e.type == QuantisedType::s8 ? Type::s8 : Type::bf16;
    view.outputs = e.outputs;
    view.inputs = e.inputs;
    view.data = at(e.data, slot.elements() * bytes_of(view.type));
    if (view.type == Type::s8) {
      view.scales = reinterpret_cast<const float*>(at(e.scales, e.outputs * 4));
      view.factors = reinterpret_cast<const float*>(at(e.factors, e.inputs * 4));
    }
    return view;
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

}  // namespace

bool is_quantised(const void* bytes, int64_t size) {
  return size >= int64_t{sizeof(QuantisedHeader)} && std::memcmp(bytes, kQuantisedMagic, 8) == 0;
}

std::vector<WeightView> quantised_matrices(const Lowered& encoder, const void* bytes, int64_t size) {
  const Reader reader(bytes, size);
  int64_t count = 0;
  for (const Slot& slot : encoder.slots) count += slot.kind == SlotKind::matrix;
  reader.check_encoder(encoder.spec, count);
  std::vector<WeightView> all;
  for (const Slot& slot : encoder.slots) {
    if (slot.kind == SlotKind::matrix) all.push_back(reader.matrix(slot));
  }
  return all;
}

}  // namespace efft::cpu
