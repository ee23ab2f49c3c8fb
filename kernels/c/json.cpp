#include "json.h"

#include <cstdlib>
#include <locale>
#include <sstream>
#include <stdexcept>

namespace efft::c {

namespace {

constexpr int kDepth = 16;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  Json whole_text() {
    check_utf8();
    at_ = 0;
    Json value = any(0);
    blanks();
    if (at_ != text_.size()) fail("something behind the value");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw std::runtime_error("not JSON at byte " + std::to_string(at_) + ": " + what);
  }

  // So that what a message quotes is text (RFC 3629; code points beyond the last one are refused, surrogates are not).
  void check_utf8() {
    while (at_ < text_.size()) {
      const auto lead = static_cast<unsigned char>(text_[at_]);
      const size_t more = lead < 0x80 ? 0 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
      if ((lead >= 0x80 && lead < 0xC2) || lead > 0xF4 || text_.size() - at_ <= more) fail("not UTF-8");
      for (size_t i = 1; i <= more; ++i) {
        if ((static_cast<unsigned char>(text_[at_ + i]) & 0xC0) != 0x80) fail("not UTF-8");
      }
      at_ += more + 1;
    }
  }

  void blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\r' || text_[at_] == '\t'))
      ++at_;
  }
  char peek() {
    blanks();
    if (at_ >= text_.size()) fail("it ends too early");
    return text_[at_];
  }
  void expect(char wanted, const char* what) {
    if (peek() != wanted) fail(what);
    ++at_;
  }
  bool take(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Json any(int depth) {
    if (depth > kDepth) fail("nested too deeply");
    Json value;
    switch (peek()) {
      case '{':
        value.kind = Json::Kind::object;
        members(value, depth);
        return value;
      case '[':
        value.kind = Json::Kind::list;
        items(value, depth);
        return value;
      case '"':
        value.kind = Json::Kind::text;
        value.text = string();
        return value;
      default:
        return literal();
    }
  }

  Json literal() {
    Json value;
    if (take("null")) return value;
    value.kind = Json::Kind::boolean;
    value.truth = take("true");
    if (value.truth || take("false")) return value;
    value.kind = Json::Kind::number;
    value.number = number();
    return value;
  }

  void members(Json& value, int depth) {
    expect('{', "expected {");
    if (peek() == '}') {
      ++at_;
      return;
    }
    for (;;) {
      if (peek() != '"') fail("expected a key");
      std::string key = string();
      expect(':', "expected :");
      Json member = any(depth + 1);
      if (!value.object.emplace(std::move(key), std::move(member)).second) fail("a key is given twice");
      if (peek() == '}') break;
      expect(',', "expected , or }");
    }
    ++at_;
  }

  void items(Json& value, int depth) {
    expect('[', "expected [");
    if (peek() == ']') {
      ++at_;
      return;
    }
    for (;;) {
      value.list.push_back(any(depth + 1));
      if (peek() == ']') break;
      expect(',', "expected , or ]");
    }
    ++at_;
  }

  double number() {
    size_t end = at_;
    while (end < text_.size() && std::string_view("+-.eE0123456789").find(text_[end]) != std::string_view::npos) ++end;
    if (end == at_) fail("expected a value");
    if (end - at_ > 64) fail("a number of more than 64 characters");
    // A program's own locale must not decide what a decimal point is.
    std::istringstream stream(std::string(text_.substr(at_, end - at_)));
    stream.imbue(std::locale::classic());
    double value = 0;
    if (!(stream >> value) || stream.peek() != std::istringstream::traits_type::eof()) fail("not a number");
    at_ = end;
    return value;
  }

  unsigned hex4() {
    if (text_.size() - at_ < 4) fail("it ends too early");
    unsigned code = 0;
    for (int i = 0; i < 4; ++i) {
      const char c = text_[at_++];
      const bool digit = c >= '0' && c <= '9', lower = c >= 'a' && c <= 'f', upper = c >= 'A' && c <= 'F';
      if (!digit && !lower && !upper) fail("not four hexadecimal digits");
      code = 16 * code + static_cast<unsigned>(digit ? c - '0' : lower ? c - 'a' + 10 : c - 'A' + 10);
    }
    return code;
  }

  static void append_utf8(std::string& out, unsigned code) {
    const auto byte = [&out](unsigned value) { out += static_cast<char>(value); };
    if (code < 0x80) return byte(code);
    if (code < 0x800) {
      byte(0xC0 | code >> 6);
    } else if (code < 0x10000) {
      byte(0xE0 | code >> 12);
      byte(0x80 | (code >> 6 & 0x3F));
    } else {
      byte(0xF0 | code >> 18);
      byte(0x80 | (code >> 12 & 0x3F));
      byte(0x80 | (code >> 6 & 0x3F));
    }
    byte(0x80 | (code & 0x3F));
  }

  void escape(std::string& out) {
    if (at_ >= text_.size()) fail("it ends too early");
    const char c = text_[at_++];
    static constexpr std::string_view from = "\"\\/bfnrt", to = "\"\\/\b\f\n\r\t";
    if (const size_t i = from.find(c); i != std::string_view::npos) {
      out += to[i];
    } else if (c == 'u') {
      unsigned code = hex4();
      if (code >= 0xD800 && code < 0xDC00) {
        if (!take("\\u")) fail("half a surrogate pair");
        const unsigned low = hex4();
        if (low < 0xDC00 || low > 0xDFFF) fail("half a surrogate pair");
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
      } else if (code >= 0xDC00 && code < 0xE000) {
        fail("half a surrogate pair");
      }
      append_utf8(out, code);
    } else {
      fail("no such escape");
    }
  }

  std::string string() {
    expect('"', "expected a string");
    std::string out;
    for (;;) {
      if (at_ >= text_.size()) fail("a string without an end");
      const char c = text_[at_++];
      if (c == '"') return out;
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a string");
      if (c == '\\') {
        escape(out);
      } else {
        out += c;
      }
    }
  }

  std::string_view text_;
  size_t at_ = 0;
};

}  // namespace

const Json* Json::find(const std::string& key) const {
  const auto found = object.find(key);
  return found == object.end() ? nullptr : &found->second;
}

Json parse_json(std::string_view text) { return Parser(text).whole_text(); }

int64_t whole(const Json& value, const std::string& what) {
  constexpr double most = 9007199254740992.0;
  if (!value.is(Json::Kind::number) || !(value.number >= 0) || value.number > most ||
      value.number != static_cast<double>(static_cast<int64_t>(value.number))) {
    throw std::runtime_error(what + " is not a whole number from 0 on");
  }
  return static_cast<int64_t>(value.number);
}

}  // namespace efft::c
