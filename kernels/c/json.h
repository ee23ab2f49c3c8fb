// JSON (RFC 8259) as far as a model's two files need it, read without trusting them: depth and size are bounded, a key
// given twice is refused, and every failure says at which byte.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace efft::c {

struct Json {
  enum class Kind { null, boolean, number, text, list, object };

  Kind kind = Kind::null;
  bool truth = false;
  double number = 0;
  std::string text;
  std::vector<Json> list;
  std::map<std::string, Json> object;

  bool is(Kind wanted) const { return kind == wanted; }
  // A member of an object, or nullptr.
  const Json* find(const std::string& key) const;
};

// Throws std::runtime_error with one line.
Json parse_json(std::string_view text);

// Of a number that is a whole one within [0, 2^53]; throws std::runtime_error naming `what`.
int64_t whole(const Json& value, const std::string& what);

}  // namespace efft::c
