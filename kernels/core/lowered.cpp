// Parsed and lowered specs, kept; and programs as text.
#include <deque>
#include <mutex>
#include <stdexcept>

#include "efft/fork.h"
#include "efft/program.h"

namespace efft {

namespace {

constexpr size_t kKept = 64;
constexpr int64_t kMostWeights = int64_t{1} << 40;

ForkMutex mutex;
// The latest first. So few entries of which mostly the first one is meant are found faster one by one than by a hash.
std::deque<std::shared_ptr<const Lowered>>& kept() {
  static auto* all = new std::deque<std::shared_ptr<const Lowered>>;  // never destroyed: threads may outlive statics
  return *all;
}

template <typename Same>
std::shared_ptr<const Lowered> find(const Same& same) {
  const std::lock_guard<ForkMutex> lock(mutex);
  auto& all = kept();
  for (size_t i = 0; i < all.size(); ++i) {
    if (!same(*all[i])) continue;
    const auto found = all[i];
    if (i > 0) {
      all.erase(all.begin() + static_cast<std::ptrdiff_t>(i));
      all.push_front(found);
    }
    return found;
  }
  return nullptr;
}

std::shared_ptr<const Lowered> make(const EncoderSpec& spec, const std::string& given) {
  auto made = std::make_shared<Lowered>();
  made->spec = spec;
  made->text = given;
  made->slots = slots(spec);
  const int64_t weights = arena_elements(made->slots, SlotKind::matrix);
  if (weights > kMostWeights) {
    throw std::runtime_error("layers: " + std::to_string(spec.layers) + " of hidden " + std::to_string(spec.hidden) +
                             " have " + std::to_string(weights) + " weights, more than any memory holds");
  }
  made->program = lower(spec, made->slots);
  made->first_rows = first_rows(made->program);
  made->folded = fold_norms(made->program);
  const std::lock_guard<ForkMutex> lock(mutex);
  auto& all = kept();
  all.push_front(made);
  if (all.size() > kKept) all.pop_back();
  return made;
}

const char* name_of(Op op) {
  static constexpr const char* names[] = {"embed", "linear", "attend", "norm", "gather", "pool"};
  return names[static_cast<int>(op)];
}

}  // namespace

std::shared_ptr<const Lowered> lowered(const EncoderSpec& spec) {
  if (auto found = find([&](const Lowered& l) { return l.spec == spec; })) return found;
  check(spec);
  return make(spec, text(spec));
}

std::shared_ptr<const Lowered> lowered(const std::string& given) {
  if (auto found = find([&](const Lowered& l) { return l.text == given; })) return found;
  return lowered(parse(given));
}

std::string text(const Program& program, const std::vector<Slot>& slots) {
  std::string all;
  const auto value = [](int v) { return "v" + std::to_string(v); };
  const auto norm = [&](const char* what, const NormSlots& n) {
    if (!n.present()) return std::string();
    const std::string& gamma = slots[n.gamma].name;
    return std::string(what) + gamma.substr(0, gamma.rfind('.'));
  };
  for (const Step& s : program.steps) {
    all += name_of(s.op);
    if (s.weight >= 0) all += " " + slots[s.weight].name;
    all += norm(" ", s.norm);
    if (s.input >= 0) all += " " + value(s.input) + norm(":", s.input_norm);
    if (s.queries >= 0) all += " queries " + value(s.queries);
    if (s.activates) all += s.gated ? " gated activation" : " activation";
    if (s.attention.local) all += " local";
    for (const int slot :
         {s.attention.rotary, s.attention.relative, s.attention.position_keys, s.attention.position_queries}) {
      if (slot >= 0) all += " " + slots[slot].name;
    }
    if (s.residual >= 0) all += " + " + value(s.residual) + norm(":", s.residual_norm);
    if (s.output >= 0) all += " -> " + value(s.output);
    all += "\n";
  }
  return all;
}

}  // namespace efft
