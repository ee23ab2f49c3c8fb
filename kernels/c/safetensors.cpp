#include "safetensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>

#include "errors.h"
#include "json.h"

namespace efft::c {

namespace {

constexpr int64_t kMostHeader = int64_t{16} << 20;
constexpr int64_t kMostElements = int64_t{1} << 48;
constexpr int64_t kLine = 64;

std::string last_of(const std::string& path) { return path.substr(path.rfind('/') + 1); }

int open_file(const std::string& path, int64_t* bytes) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw bad_model(path + ": " + std::strerror(errno));
  struct stat facts;
  if (fstat(file, &facts) != 0 || !S_ISREG(facts.st_mode)) {
    close(file);
    throw bad_model(path + ": not a file");
  }
  *bytes = facts.st_size;
  return file;
}

ElementType type_of(const std::string& name) {
  if (name == "F32") return ElementType::f32;
  if (name == "F16") return ElementType::f16;
  if (name == "BF16") return ElementType::bf16;
  if (name == "U8") return ElementType::u8;
  throw std::runtime_error("type " + name + " is not among F32, F16, BF16, U8");
}

int64_t bytes_of(ElementType type) { return type == ElementType::f32 ? 4 : type == ElementType::u8 ? 1 : 2; }

const Json& member(const Json& value, const std::string& key, Json::Kind kind) {
  const Json* found = value.find(key);
  if (found == nullptr || !found->is(kind)) throw std::runtime_error(key + " is missing or of another kind");
  return *found;
}

TensorEntry entry_of(const Json& json, int64_t data_bytes) {
  if (!json.is(Json::Kind::object)) throw std::runtime_error("not an object");
  TensorEntry entry{type_of(member(json, "dtype", Json::Kind::text).text), {}, 1, 0, 0};
  for (const Json& size : member(json, "shape", Json::Kind::list).list) {
    entry.shape.push_back(whole(size, "a size"));
    if (entry.shape.back() > 0 && entry.elements > kMostElements / entry.shape.back())
      throw std::runtime_error("more elements than any memory holds");
    entry.elements *= entry.shape.back();
  }
  const auto& offsets = member(json, "data_offsets", Json::Kind::list).list;
  if (offsets.size() != 2) throw std::runtime_error("data_offsets are not two");
  entry.begin = whole(offsets[0], "data_offsets");
  entry.end = whole(offsets[1], "data_offsets");
  if (entry.begin > entry.end || entry.end > data_bytes)
    throw std::runtime_error("its bytes " + std::to_string(entry.begin) + " to " + std::to_string(entry.end) +
                             " are not within the file's " + std::to_string(data_bytes) +
                             " bytes of data; is the file cut off?");
  if (entry.bytes() != entry.elements * bytes_of(entry.type))
    throw std::runtime_error("its shape and its " + std::to_string(entry.bytes()) + " bytes do not fit each other");
  return entry;
}

// IEEE 754 binary16.
float widen_half(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16, exponent = half >> 10 & 0x1F, fraction = half & 0x3FF;
  uint32_t bits;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 0x1p-24f;
    std::memcpy(&bits, &value, sizeof bits);
    bits |= sign;
  } else {
    bits = sign | (exponent == 31 ? 0xFFu : exponent + 112) << 23 | fraction << 13;
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace

void widen(const void* from, ElementType type, int64_t count, float* to) {
  if (type == ElementType::f32) {
    std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  const auto* bytes = static_cast<const char*>(from);
  for (int64_t i = 0; i < count; ++i) {
    uint16_t half;
    std::memcpy(&half, bytes + 2 * i, sizeof half);
    if (type == ElementType::f16) {
      to[i] = widen_half(half);
    } else {
      const uint32_t bits = uint32_t{half} << 16;
      std::memcpy(to + i, &bits, sizeof bits);
    }
  }
}

std::string read_text(const std::string& path) {
  int64_t bytes = 0;
  const int file = open_file(path, &bytes);
  std::string text;
  bool good = bytes <= kMostHeader;
  if (good) {
    text.resize(static_cast<size_t>(bytes));
    good = read(file, text.data(), text.size()) == bytes;
  }
  close(file);
  if (!good) throw bad_model(path + (bytes > kMostHeader ? ": larger than 16 MiB" : ": cannot be read"));
  return text;
}

TensorFile::TensorFile(const std::string& path) : name_(last_of(path)) {
  int64_t bytes = 0;
  file_ = open_file(path, &bytes);
  try {
    uint8_t size[8];
    if (bytes < 8) fail("too short for a header; is the file cut off?");
    read_at(size, 8, 0);
    uint64_t header = 0;
    for (int i = 7; i >= 0; --i) header = header << 8 | size[i];
    if (header > static_cast<uint64_t>(kMostHeader) || static_cast<int64_t>(header) > bytes - 8)
      fail("its header claims " + std::to_string(header) + " bytes, the file has " + std::to_string(bytes));
    std::string text(header, '\0');
    read_at(text.data(), static_cast<int64_t>(header), 8);
    data_at_ = 8 + static_cast<int64_t>(header);
    parse_header(text, bytes - data_at_);
  } catch (...) {
    close(file_);
    throw;
  }
}

TensorFile::~TensorFile() { close(file_); }

void TensorFile::fail(const std::string& what) const { throw bad_model(name_ + ": " + what); }

void TensorFile::parse_header(const std::string& text, int64_t data_bytes) {
  std::string at = "header";
  try {
    const Json header = parse_json(text);
    if (!header.is(Json::Kind::object)) throw std::runtime_error("not an object");
    for (const auto& [key, value] : header.object) {
      at = "tensor " + key.substr(0, 80);
      if (key != "__metadata__") entries_.emplace(key, entry_of(value, data_bytes));
    }
  } catch (const std::runtime_error& error) {
    fail(at + ": " + error.what());
  }
  check_layout(data_bytes);
}

// As the format demands: no tensor lies in another one, and nothing lies between them or behind.
void TensorFile::check_layout(int64_t data_bytes) const {
  std::vector<const TensorEntry*> in_order;
  for (const auto& [name, entry] : entries_) in_order.push_back(&entry);
  std::sort(in_order.begin(), in_order.end(), [](const TensorEntry* a, const TensorEntry* b) {
    return a->begin != b->begin ? a->begin < b->begin : a->end < b->end;
  });
  int64_t end = 0;
  for (const TensorEntry* entry : in_order) {
    if (entry->begin != end) fail("its tensors overlap or leave gaps at byte " + std::to_string(entry->begin));
    end = entry->end;
  }
  if (end != data_bytes)
    fail("its tensors take " + std::to_string(end) + " bytes, the file holds " + std::to_string(data_bytes));
}

void TensorFile::read_at(void* to, int64_t bytes, int64_t offset) const {
  auto* at = static_cast<char*>(to);
  while (bytes > 0) {
    const ssize_t got = pread(file_, at, static_cast<size_t>(std::min<int64_t>(bytes, 1 << 30)), offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail(std::string("cannot be read: ") + std::strerror(errno));
    if (got == 0) fail("it became shorter while it was read");
    at += got;
    bytes -= got;
    offset += got;
  }
}

const TensorEntry& TensorFile::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail("there is no tensor " + name);
  return found->second;
}

Bytes TensorFile::read(const std::string& name) const {
  const TensorEntry& e = entry(name);
  const auto room = static_cast<size_t>((e.bytes() + kLine - 1) / kLine * kLine + kLine);
  Bytes bytes(static_cast<char*>(std::aligned_alloc(kLine, room)), std::free);
  if (!bytes) throw std::bad_alloc();
  read_at(bytes.get(), e.bytes(), data_at_ + e.begin);
  return bytes;
}

std::vector<float> TensorFile::floats(const std::string& name) const {
  const TensorEntry& e = entry(name);
  if (e.type == ElementType::u8) fail("tensor " + name + " is of bytes, not of numbers");
  const Bytes bytes = read(name);
  std::vector<float> values(static_cast<size_t>(e.elements));
  widen(bytes.get(), e.type, e.elements, values.data());
  return values;
}

}  // namespace efft::c
