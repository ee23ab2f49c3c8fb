// A file of tensors (the safetensors format of Hugging Face: 8 bytes of header size, a header in JSON, the data), read
// tensor by tensor with everything in the header checked against the file's size first.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace efft::c {

enum class ElementType { f32, f16, bf16, u8 };

// Its bytes, on a cache line.
using Bytes = std::unique_ptr<char, void (*)(void*)>;

struct TensorEntry {
  ElementType type;
  std::vector<int64_t> shape;
  int64_t elements, begin, end;  // the last two: bytes from the data's start

  int64_t bytes() const { return end - begin; }
};

class TensorFile {
 public:
  // Throws Refused (EFFT_BAD_MODEL) in one line that names the file.
  explicit TensorFile(const std::string& path);
  ~TensorFile();
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  // Throw Refused where there is none of the name, or the file cannot be read.
  const TensorEntry& entry(const std::string& name) const;
  Bytes read(const std::string& name) const;
  // Widened to fp32.
  std::vector<float> floats(const std::string& name) const;

 private:
  void parse_header(const std::string& text, int64_t data_bytes);
  void check_layout(int64_t data_bytes) const;
  void read_at(void* to, int64_t bytes, int64_t offset) const;
  [[noreturn]] void fail(const std::string& what) const;

  std::string name_;
  int file_;
  int64_t data_at_ = 0;
  std::map<std::string, TensorEntry> entries_;
};

// Widens `count` elements. Not for u8.
void widen(const void* from, ElementType type, int64_t count, float* to);

// A text file of at most 16 MiB. Throws Refused.
std::string read_text(const std::string& path);

}  // namespace efft::c
