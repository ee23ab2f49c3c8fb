// Reads the archived 8-bit form.
#include "efft/quantised.h"

#include <cstring>
#include <stdexcept>
#include <string>

namespace efft {

namespace {

[[noreturn]] void refuse(const std::string& why) { throw std::runtime_error("matrices: " + why); }

bool begins_with(const void* bytes, const char* magic) {
  return std::memcmp(bytes, magic, sizeof QuantisedHeader::magic) == 0;
}

class Reader {
 public:
  Reader(const void* table, const void* base, int64_t size)
      : table_(static_cast<const char*>(table)), base_(static_cast<const char*>(base)), size_(size) {
    if (size < int64_t{sizeof header_}) refuse("too short to be a quantised arena");
    if (!is_quantised(table, size)) refuse("not a quantised arena");
    std::memcpy(&header_, table, sizeof header_);
    if (begins_with(table, kQuantisedMagicWithoutSteps)) entry_bytes_ = kQuantisedEntryBytesWithoutSteps;
  }

  void check_encoder(const EncoderSpec& s, int64_t matrices) const {
    if (header_.layers != s.layers || header_.hidden != s.hidden || header_.embedding != s.embedding ||
        header_.intermediate != s.intermediate || header_.entries != matrices) {
      refuse("quantised for another encoder");
    }
    at(sizeof header_, header_.entries * entry_bytes_);
  }

  WeightView matrix(const Slot& slot) const {
    QuantisedEntry e{};
    std::memcpy(&e, table_ + sizeof header_ + slot.index * entry_bytes_, entry_bytes_);
    if (e.outputs != slot.rows || e.inputs != slot.columns) refuse("entry " + slot.name + " has another size");
    WeightView view;
    switch (e.type) {
      case QuantisedType::bf16:
        view.type = Type::bf16;
        break;
      case QuantisedType::s8:
        view.type = Type::s8;
        break;
      case QuantisedType::e4m3:
        view.type = Type::e4m3;
        break;
      default:
        refuse("entry " + slot.name + " has an unknown type");
    }
    view.outputs = e.outputs;
    view.inputs = e.inputs;
    view.data = at(e.data, slot.elements() * bytes_of(view.type));
    if (view.type == Type::bf16) return view;
    view.scales = reinterpret_cast<const float*>(at(e.scales, e.outputs * 4));
    view.factors = reinterpret_cast<const float*>(at(e.factors, e.inputs * 4));
    const auto bits = static_cast<uint32_t>(e.step);
    std::memcpy(&view.step, &bits, sizeof bits);
    view.zero = view.type == Type::s8 ? static_cast<float>(static_cast<uint64_t>(e.step) >> 32) : 0.0f;
    if (view.zero > 255) refuse("entry " + slot.name + " has a zero beyond 8 bits");
    if (!(view.step >= 0 && view.step <= 3e38f)) refuse("entry " + slot.name + " has a step that is no size");
    return view;
  }

 private:
  const char* at(int64_t offset, int64_t length) const {
    if (offset < 0 || offset % 8 != 0 || length > size_ || offset > size_ - length) refuse("an entry lies outside");
    return base_ + offset;
  }

  const char* table_;
  const char* base_;
  int64_t size_;
  int64_t entry_bytes_ = sizeof(QuantisedEntry);
  QuantisedHeader header_;
};

int64_t matrices_of(const Lowered& encoder) {
  int64_t count = 0;
  for (const Slot& slot : encoder.slots) count += slot.kind == SlotKind::matrix;
  return count;
}

}  // namespace

bool is_quantised(const void* bytes, int64_t size) {
  return size >= int64_t{sizeof(QuantisedHeader)} &&
         (begins_with(bytes, kQuantisedMagic) || begins_with(bytes, kQuantisedMagicWithoutSteps));
}

int64_t quantised_table_bytes(const Lowered& encoder) {
  return sizeof(QuantisedHeader) + matrices_of(encoder) * int64_t{sizeof(QuantisedEntry)};
}

std::vector<WeightView> quantised_matrices(const Lowered& encoder, const void* table, const void* base, int64_t size) {
  const Reader reader(table, base, size);
  reader.check_encoder(encoder.spec, matrices_of(encoder));
  std::vector<WeightView> all;
  for (const Slot& slot : encoder.slots) {
    if (slot.kind == SlotKind::matrix) all.push_back(reader.matrix(slot));
  }
  return all;
}

}  // namespace efft
