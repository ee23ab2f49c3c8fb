// The one table of an encoder's attributes, and what it drives: parsing, printing, comparing.
#include "efft/spec.h"

#include <charconv>
#include <cmath>
#include <set>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

namespace efft {

namespace {

constexpr std::string_view kVersion = "encoder/1";

template <typename E>
using Names = std::vector<std::pair<std::string_view, E>>;

#define EFFT_ROW(name) {#name, E::name},
#define EFFT_NAMES(Enum, list)       \
  [] {                               \
    using E = Enum;                  \
    return Names<E>{list(EFFT_ROW)}; \
  }()
const Names<Activation> kActivations = EFFT_NAMES(Activation, EFFT_ACTIVATIONS);
const Names<NormPlace> kNormPlaces = EFFT_NAMES(NormPlace, EFFT_NORM_PLACES);
const Names<PositionCount> kPositions = EFFT_NAMES(PositionCount, EFFT_POSITION_COUNTS);
const Names<Output> kOutputs{{"hidden", Output::hidden}, {"first", Output::first}, {"mean", Output::mean}};

const auto& names(Activation) { return kActivations; }
const auto& names(NormPlace) { return kNormPlaces; }
const auto& names(PositionCount) { return kPositions; }

// The table: visit(key, member, whether a text must give it), in the text's order.
template <typename Visit>
void each_field(Visit&& visit) {
  using S = EncoderSpec;
  visit("layers", &S::layers, true);
  visit("hidden", &S::hidden, true);
  visit("heads", &S::heads, true);
  visit("intermediate", &S::intermediate, true);
  visit("embedding", &S::embedding, false);
  visit("activation", &S::activation, false);
  visit("norm", &S::norm, false);
  visit("epsilon", &S::epsilon, false);
  visit("positions", &S::positions, false);
  visit("offset", &S::offset, false);
  visit("pad", &S::pad, false);
}

// What fields are that a text leaves out.
EncoderSpec defaults(const EncoderSpec& spec) {
  EncoderSpec d;
  d.embedding = spec.hidden;
  return d;
}

[[noreturn]] void refuse(std::string_view key, const std::string& why) {
  throw std::runtime_error(std::string(key) + ": " + why);
}

std::string quoted(std::string_view text) { return "'" + std::string(text) + "'"; }

template <typename E>
E chosen(std::string_view key, std::string_view text, const Names<E>& names) {
  std::string all;
  for (size_t i = 0; i < names.size(); ++i) {
    if (names[i].first == text) return names[i].second;
    all += (i == 0 ? "" : i + 1 < names.size() ? ", " : " or ") + std::string(names[i].first);
  }
  refuse(key, "expected " + all + ", got " + quoted(text));
}

void read(std::string_view key, std::string_view text, int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    refuse(key, "expected a whole number, got " + quoted(text));
}

void read(std::string_view key, std::string_view text, double& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) refuse(key, "expected a number, got " + quoted(text));
}

template <typename E>
void read(std::string_view key, std::string_view text, E& value) {
  value = chosen(key, text, names(E{}));
}

std::string print(int64_t value) { return std::to_string(value); }

// As C's and Python's "%.{n}g" with the smallest n that reads back as the same number; no locale changes it.
std::string print(double value) {
  char text[40];
  for (int digits = 1;; ++digits) {
    const auto end = std::to_chars(text, text + sizeof text, value, std::chars_format::general, digits).ptr;
    double back = 0;
    std::from_chars(text, end, back);
    if (back == value || digits == 17) return {text, end};
  }
}

template <typename E>
std::string print(E value) {
  for (const auto& [name, known] : names(E{})) {
    if (known == value) return std::string(name);
  }
  return "?";
}

std::vector<std::string_view> words(std::string_view text) {
  std::vector<std::string_view> all;
  for (size_t at = 0; at < text.size();) {
    const size_t end = std::min(text.find(' ', at), text.size());
    if (end > at) all.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return all;
}

void read_field(EncoderSpec& spec, std::string_view key, std::string_view value) {
  bool known = false;
  each_field([&](std::string_view name, auto member, bool) {
    if (name != key) return;
    known = true;
    read(key, value, spec.*member);
  });
  if (!known) refuse("spec", "unknown key " + quoted(key));
}

}  // namespace

bool operator==(const EncoderSpec& a, const EncoderSpec& b) {
  bool same = true;
  each_field([&](std::string_view, auto member, bool) { same = same && a.*member == b.*member; });
  return same;
}

EncoderSpec parse(const std::string& text) {
  const auto all = words(text);
  if (all.empty() || all[0] != kVersion) {
    refuse("spec", "must begin with " + quoted(kVersion) + ", begins with " + quoted(all.empty() ? "" : all[0]));
  }
  EncoderSpec spec;
  std::set<std::string_view> given;
  for (size_t i = 1; i < all.size(); ++i) {
    const size_t equals = all[i].find('=');
    if (equals == std::string_view::npos) refuse("spec", "expected key=value, got " + quoted(all[i]));
    const std::string_view key = all[i].substr(0, equals);
    if (!given.insert(key).second) refuse("spec", std::string(key) + " is given twice");
    read_field(spec, key, all[i].substr(equals + 1));
  }
  each_field([&](std::string_view name, auto, bool required) {
    if (required && !given.count(name)) refuse("spec", std::string(name) + " is missing");
  });
  if (!given.count("embedding")) spec.embedding = spec.hidden;
  check(spec);
  return spec;
}

std::string text(const EncoderSpec& spec) {
  const EncoderSpec usual = defaults(spec);
  std::string all(kVersion);
  each_field([&](const char* name, auto member, bool required) {
    if (required || !(spec.*member == usual.*member)) all += std::string(" ") + name + "=" + print(spec.*member);
  });
  return all;
}

void check(const EncoderSpec& s) {
  // No encoder comes near these, and products of them stay within 63 bits.
  constexpr int64_t most_layers = 4096, widest = int64_t{1} << 20;
  constexpr int64_t rows = int64_t{1} << 31;
  const auto within = [](std::string_view key, int64_t value, int64_t least, int64_t most) {
    if (value >= least && value <= most) return;
    refuse(key, "expected " + std::to_string(least) + " to " + std::to_string(most) + ", got " + std::to_string(value));
  };
  within("layers", s.layers, 1, most_layers);
  within("hidden", s.hidden, 1, widest);
  within("embedding", s.embedding, 1, widest);
  within("intermediate", s.intermediate, 1, widest);
  if (s.heads < 1 || s.hidden % s.heads != 0) {
    refuse("heads", std::to_string(s.heads) + " do not divide hidden " + std::to_string(s.hidden));
  }
  if (s.head_size() % 2 != 0 || s.head_size() > 128) {
    refuse("heads", "the head size must be even and at most 128, got " + std::to_string(s.head_size()));
  }
  if (!(s.epsilon >= 0 && std::isfinite(s.epsilon))) refuse("epsilon", "must not be negative, got " + print(s.epsilon));
  if (s.positions == PositionCount::ids) {
    if (s.pad == EncoderSpec::kNoPad) refuse("pad", "positions=ids count from it; it is missing");
    within("pad", s.pad, -1, rows - 2);
    if (s.offset != 0) refuse("offset", "positions=ids begin behind the pad id; leave it out");
  } else {
    if (s.pad != EncoderSpec::kNoPad) refuse("pad", "only positions=ids count from it; leave it out");
    within("offset", s.offset, 0, rows - 1);
  }
}

Activation activation_of(const std::string& name) { return chosen("activation", name, kActivations); }
Output output_of(const std::string& name) { return chosen("output", name, kOutputs); }

}  // namespace efft
