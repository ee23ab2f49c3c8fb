// The one table of an encoder's attributes, and what it drives: parsing, printing, comparing.
#include "efft/spec.h"

#include <algorithm>
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
const Names<NormKind> kNormKinds = EFFT_NAMES(NormKind, EFFT_NORM_KINDS);
const Names<Rotary> kRotaries = EFFT_NAMES(Rotary, EFFT_ROTARIES);
const Names<Relative> kRelatives = EFFT_NAMES(Relative, EFFT_RELATIVES);
const Names<PositionCount> kPositions = EFFT_NAMES(PositionCount, EFFT_POSITION_COUNTS);
const Names<Output> kOutputs{{"hidden", Output::hidden}, {"first", Output::first}, {"mean", Output::mean}};

const auto& names(Activation) { return kActivations; }
const auto& names(NormPlace) { return kNormPlaces; }
const auto& names(PositionCount) { return kPositions; }
const auto& names(NormKind) { return kNormKinds; }
const auto& names(Rotary) { return kRotaries; }
const auto& names(Relative) { return kRelatives; }

// Sizes that follow from others where they are 0.
constexpr std::pair<std::string_view, int64_t EncoderSpec::*> kSettled[] = {
    {"embedding", &EncoderSpec::embedding},
    {"head", &EncoderSpec::head},
    {"kv_heads", &EncoderSpec::kv_heads},
    {"rotary_size", &EncoderSpec::rotary_size},
};

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
  visit("head", &S::head, false);
  visit("kv_heads", &S::kv_heads, false);
  visit("normalise", &S::normalise, false);
  visit("first_norm", &S::first_norm, false);
  visit("embedding_norm", &S::embedding_norm, false);
  visit("types", &S::types, false);
  visit("gated", &S::gated, false);
  visit("rotary", &S::rotary, false);
  visit("rotary_size", &S::rotary_size, false);
  visit("window", &S::window, false);
  visit("local", &S::local, false);
  visit("scale", &S::scale, false);
  visit("relative", &S::relative, false);
  visit("buckets", &S::buckets, false);
  visit("distance", &S::distance, false);
  visit("c2p", &S::c2p, false);
  visit("p2c", &S::p2c, false);
  visit("layer_of", &S::layer_of, false);
  visit("dropout_token", &S::dropout_token, false);
}

// The factor of q . k that a text leaves out.
double usual_scale(const EncoderSpec& s) {
  const int kinds = s.relative == Relative::disentangled ? s.c2p + s.p2c : 0;
  return 1.0 / std::sqrt(static_cast<double>(s.head * (1 + kinds)));
}

// What fields are that a text leaves out.
EncoderSpec defaults(const EncoderSpec& spec) {
  EncoderSpec d;
  d.embedding = spec.hidden;
  d.head = spec.heads > 0 && spec.hidden % spec.heads == 0 ? spec.hidden / spec.heads : 0;
  d.kv_heads = spec.heads;
  d.rotary_size = spec.head;
  d.scale = usual_scale(spec);
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

void read(std::string_view key, std::string_view text, bool& value) {
  if (text != "0" && text != "1") refuse(key, "expected 0 or 1, got " + quoted(text));
  value = text == "1";
}

void read(std::string_view, std::string_view text, std::string& value) { value = text; }

void read(std::string_view key, std::string_view text, std::vector<int64_t>& value) {
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(',', at), text.size());
    read(key, text.substr(at, end - at), value.emplace_back());
    at = end + 1;
  }
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

std::string print(bool value) { return value ? "1" : "0"; }

const std::string& print(const std::string& value) { return value; }

std::string print(const std::vector<int64_t>& value) {
  std::string all;
  for (const int64_t number : value) all += (all.empty() ? "" : ",") + std::to_string(number);
  return all;
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
  for (const auto& [key, member] : kSettled) {
    if (given.count(key) && spec.*member == 0) refuse(key, "expected a positive number, got 0");
  }
  if (given.count("scale") && spec.scale == 0) refuse("scale", "must be positive, got 0");
  settle(spec);
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

void settle(EncoderSpec& spec) {
  if (spec.head == 0) spec.head = defaults(spec).head;
  const EncoderSpec usual = defaults(spec);
  for (const auto& [key, member] : kSettled) {
    if (spec.*member == 0) spec.*member = usual.*member;
  }
  if (spec.scale == 0) spec.scale = usual.scale;
  if (spec.local.find_first_not_of('0') == std::string::npos && static_cast<int64_t>(spec.local.size()) == spec.layers)
    spec.local.clear();
  bool own = true;
  for (size_t l = 0; l < spec.layer_of.size(); ++l) own = own && spec.layer_of[l] == static_cast<int64_t>(l);
  if (own && static_cast<int64_t>(spec.layer_of.size()) == spec.layers) spec.layer_of.clear();
}

int64_t EncoderSpec::distinct_layers() const {
  return layer_of.empty() ? layers : *std::max_element(layer_of.begin(), layer_of.end()) + 1;
}

void check_known(const EncoderSpec& spec, const std::vector<std::string_view>& known, const std::string& engine) {
  const EncoderSpec usual = defaults(spec);
  each_field([&](std::string_view key, auto member, bool) {
    if (spec.*member == usual.*member || std::find(known.begin(), known.end(), key) != known.end()) return;
    refuse("spec", engine + " does not run " + std::string(key) + "=" + print(spec.*member));
  });
}

int64_t bucket_of(const EncoderSpec& s, int64_t distance) {
  const int64_t far = std::abs(distance);
  const auto log_of = [](double x) { return std::log(static_cast<float>(x)); };
  if (s.relative == Relative::buckets) {
    const int64_t side = s.buckets / 2, exact = side / 2, first = distance < 0 ? side : 0;
    if (far < exact) return first + far;
    const float share = log_of(static_cast<float>(far) / static_cast<float>(exact)) /
                        static_cast<float>(std::log(static_cast<double>(s.distance) / static_cast<double>(exact)));
    return first + std::min(exact + static_cast<int64_t>(share * static_cast<float>(side - exact)), side - 1);
  }
  const int64_t middle = s.buckets / 2;
  if (s.buckets == 0 || far <= middle) return distance;
  const float share = log_of(static_cast<float>(far) / static_cast<float>(middle)) /
                      log_of(static_cast<double>(s.distance - 1) / static_cast<double>(middle));
  const int64_t bucket = static_cast<int64_t>(std::ceil(share * static_cast<float>(middle - 1))) + middle;
  return distance < 0 ? -bucket : bucket;
}

namespace {

// Sizes and products of them stay far within 63 bits; no encoder comes near these.
constexpr int64_t kMostLayers = 4096, kWidest = int64_t{1} << 20, kMostRows = int64_t{1} << 31;

void within(std::string_view key, int64_t value, int64_t least, int64_t most) {
  if (value >= least && value <= most) return;
  refuse(key, "expected " + std::to_string(least) + " to " + std::to_string(most) + ", got " + std::to_string(value));
}

void leave_out(std::string_view key, bool given, const std::string& why) {
  if (given) refuse(key, why + "; leave it out");
}

void check_sizes(const EncoderSpec& s) {
  within("layers", s.layers, 1, kMostLayers);
  within("hidden", s.hidden, 1, kWidest);
  within("embedding", s.embedding, 1, kWidest);
  within("intermediate", s.intermediate, 1, kWidest);
  if (s.heads < 1 || s.head == 0) {
    refuse("heads", std::to_string(s.heads) + " do not divide hidden " + std::to_string(s.hidden));
  }
  within("heads", s.heads, 1, kWidest);
  if (s.head % 2 != 0 || s.head > 128 || s.head < 0) {
    refuse("heads", "the head size must be even and at most 128, got " + std::to_string(s.head));
  }
  if (s.kv_heads < 1 || s.heads % s.kv_heads != 0) {
    refuse("kv_heads", std::to_string(s.kv_heads) + " do not divide heads " + std::to_string(s.heads));
  }
  if (!(s.epsilon >= 0 && std::isfinite(s.epsilon))) refuse("epsilon", "must not be negative, got " + print(s.epsilon));
}

void check_positions(const EncoderSpec& s) {
  if (s.positions == PositionCount::ids) {
    if (s.pad == EncoderSpec::kNoPad) refuse("pad", "positions=ids count from it; it is missing");
    within("pad", s.pad, -1, kMostRows - 2);
    leave_out("offset", s.offset != 0, "positions=ids begin behind the pad id");
  } else {
    leave_out("pad", s.pad != EncoderSpec::kNoPad, "only positions=ids count from it");
    within("offset", s.offset, 0, kMostRows - 1);
    leave_out("offset", s.positions == PositionCount::none && s.offset != 0, "positions=none have no table");
  }
  if (s.rotary != Rotary::none) {
    within("rotary_size", s.rotary_size, 2, s.head);
    if (s.rotary_size % 2 != 0) refuse("rotary_size", "must be even, got " + std::to_string(s.rotary_size));
  } else {
    leave_out("rotary_size", s.rotary_size != s.head, "only rotary=halves and interleaved have one");
  }
  within("dropout_token", s.dropout_token, EncoderSpec::kNoToken, kMostRows - 1);
}

// A bucket for each distance up to some, then fewer: their logarithms need room.
void check_relative(const EncoderSpec& s) {
  const bool has_buckets = s.relative == Relative::buckets, apart = s.relative == Relative::disentangled;
  leave_out("c2p", s.c2p && !apart, "only relative=disentangled has it");
  leave_out("p2c", s.p2c && !apart, "only relative=disentangled has it");
  leave_out("buckets", s.buckets != 0 && !has_buckets && !apart, "only relative=buckets and disentangled have them");
  leave_out("distance", s.distance != 0 && !has_buckets && !apart, "only relative=buckets and disentangled have one");
  if (has_buckets || (apart && s.buckets != 0)) {
    within("buckets", s.buckets, 4, kWidest);
    if (s.buckets % 4 != 0 && has_buckets) refuse("buckets", "must be a multiple of 4, got " + print(s.buckets));
    if (s.buckets % 2 != 0) refuse("buckets", "must be even, got " + print(s.buckets));
    within("distance", s.distance, has_buckets ? s.buckets / 4 + 1 : s.buckets / 2 + 2, kWidest);
  }
  if (!apart) return;
  within("distance", s.distance, 1, kWidest);
  if (!s.c2p && !s.p2c) refuse("relative", "disentangled needs c2p=1 or p2c=1");
  leave_out("rotary", s.rotary != Rotary::none, "relative=disentangled has positions of its own");
  leave_out("kv_heads", s.kv_heads != s.heads, "relative=disentangled has keys for each head");
  leave_out("local", !s.local.empty(), "relative=disentangled sees every key");
}

void check_layers(const EncoderSpec& s) {
  if (!s.local.empty()) {
    const bool binary = s.local.find_first_not_of("01") == std::string::npos;
    if (!binary || static_cast<int64_t>(s.local.size()) != s.layers) {
      refuse("local", "expected a 0 or 1 for each of " + std::to_string(s.layers) + " layers, got " + quoted(s.local));
    }
    within("window", s.window, 1, kMostRows);
  }
  leave_out("window", s.local.empty() && s.window != 0, "only local layers have one");
  if (!s.layer_of.empty()) {
    int64_t seen = 0;
    for (const int64_t layer : s.layer_of) {
      within("layer_of", layer, 0, seen);
      seen = std::max(seen, layer + 1);
    }
    if (static_cast<int64_t>(s.layer_of.size()) != s.layers) {
      refuse("layer_of", "expected a number for each of " + std::to_string(s.layers) + " layers, got " +
                             std::to_string(s.layer_of.size()));
    }
  }
  if (s.first_norm) return;
  leave_out("first_norm", s.norm != NormPlace::pre, "norms behind the blocks are never absent");
  leave_out("first_norm", !s.layer_of.empty(), "layers that share weights have the same norms");
}

}  // namespace

void check(const EncoderSpec& s) {
  check_sizes(s);
  check_positions(s);
  check_relative(s);
  check_layers(s);
  if (!(s.scale > 0 && std::isfinite(s.scale))) refuse("scale", "must be positive, got " + print(s.scale));
}

Activation activation_of(const std::string& name) { return chosen("activation", name, kActivations); }
Output output_of(const std::string& name) { return chosen("output", name, kOutputs); }

}  // namespace efft
