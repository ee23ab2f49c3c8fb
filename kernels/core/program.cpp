// The one lowering, its rewrites, and where values lie.
#include "efft/program.h"

#include <algorithm>
#include <tuple>
#include <unordered_map>
#include <utility>

namespace efft {

namespace {

// Appends steps, each writing a new value; looks slots up by name.
class Lowering {
 public:
  Lowering(const EncoderSpec& spec, const std::vector<Slot>& slots) : s_(spec), slots_(slots) {
    for (size_t i = 0; i < slots.size(); ++i) index_[slots[i].name] = static_cast<int>(i);
  }

  Program make() {
    int x = embed();
    if (s_.projects()) x = linear("projection", x, -1, false);
    for (step_layer_ = 0; step_layer_ < s_.layers; ++step_layer_) {
      layer_ = s_.weights_of(step_layer_);
      x = layer(x);
    }
    layer_ = step_layer_ = -1;
    if (s_.norm == NormPlace::pre) x = norm("final_norm", x);
    Step pool{Op::pool};
    pool.input = x;
    program_.steps.push_back(pool);
    return std::move(program_);
  }

 private:
  // A block is `inner` with a residual around it; where its LayerNorm stands is all that post and pre differ in.
  template <typename Inner>
  int block(const char* norm_name, int x, const Inner& inner) {
    if (s_.norm == NormPlace::pre) return inner(has(norm_name) ? norm(norm_name, x) : x, x);
    return norm(norm_name, inner(x, x));
  }

  int layer(int x) {
    x = block("attention_norm", x, [&](int input, int residual) {
      return linear("attention_output", attend(linear("qkv", input, -1, false)), residual, false);
    });
    return block("output_norm", x, [&](int input, int residual) {
      return linear("output", linear("intermediate", input, -1, true), residual, false);
    });
  }

  int embed() {
    Step step{Op::embed};
    if (s_.embedding_norm) step.norm = norm_slots("embedding_norm");
    return write(step, s_.embedding);
  }

  int linear(const std::string& name, int input, int residual, bool activates) {
    Step step{Op::linear};
    step.input = input;
    step.residual = residual;
    step.weight = slot(name);
    step.bias = slot(name + ".bias");
    step.activates = activates;
    step.gated = activates && s_.gated;
    return write(step, slots_[step.weight].rows / (step.gated ? 2 : 1));
  }

  int attend(int qkv) {
    Step step{Op::attend};
    step.input = qkv;
    Attention& a = step.attention;
    a.local = s_.is_local(step_layer_);
    if (s_.rotary != Rotary::none) a.rotary = index_.at(a.local ? "rotary_local" : "rotary");
    if (s_.relative == Relative::buckets) a.relative = index_.at("relative");
    if (s_.relative == Relative::alibi) a.relative = index_.at("slopes");
    if (s_.c2p) a.position_keys = slot("position_keys");
    if (s_.p2c) a.position_queries = slot("position_queries");
    return write(step, s_.context());
  }

  int norm(const std::string& name, int input) {
    Step step{Op::norm};
    step.input = input;
    step.norm = norm_slots(name);
    return write(step, program_.values[input].width);
  }

  NormSlots norm_slots(const std::string& name) const { return {slot(name + ".gamma"), slot(name + ".beta")}; }

  std::string full(const std::string& name) const { return layer_ < 0 ? name : std::to_string(layer_) + "." + name; }
  int slot(const std::string& name) const { return index_.at(full(name)); }
  bool has(const std::string& norm_name) const { return index_.count(full(norm_name + ".gamma")) > 0; }

  int write(Step step, int64_t width) {
    step.layer = static_cast<int>(step_layer_);
    step.output = static_cast<int>(program_.values.size());
    program_.steps.push_back(step);
    program_.values.push_back({width});
    return step.output;
  }

  const EncoderSpec& s_;
  const std::vector<Slot>& slots_;
  std::unordered_map<std::string, int> index_;
  Program program_;
  int64_t step_layer_ = -1, layer_ = -1;  // the layer, and the one whose weights it uses
};

// Values in the order of their steps, without those that nobody writes any more; and when each lives.
Program tidied(Program p) {
  std::vector<int> number(p.values.size(), -1);
  Program out;
  for (size_t i = 0; i < p.steps.size(); ++i) {
    Step step = p.steps[i];
    for (int* value : {&step.input, &step.residual, &step.queries}) {
      if (*value < 0) continue;
      *value = number[*value];
      out.values[*value].last_read = static_cast<int>(i);
    }
    if (step.output >= 0) {
      number[step.output] = static_cast<int>(out.values.size());
      Value value = p.values[step.output];
      value.made = static_cast<int>(i);
      value.last_read = static_cast<int>(i);
      step.output = number[step.output];
      out.values.push_back(value);
    }
    out.steps.push_back(step);
  }
  return out;
}

bool only_products_read(const Program& p, int value) {
  bool found = false;
  for (int i = p.values[value].made; i <= p.values[value].last_read; ++i) {
    const Step& step = p.steps[i];
    if (step.input != value && step.residual != value) continue;
    if (step.op != Op::linear) return false;
    found = true;
  }
  return found;
}

}  // namespace

Program lower(const EncoderSpec& spec, const std::vector<Slot>& slots) { return tidied(Lowering(spec, slots).make()); }

Program fold_norms(const Program& program) {
  Program p = program;
  std::vector<Step> kept;
  std::vector<std::pair<int, NormSlots>> source(p.values.size(), {-1, {}});
  for (const Step& step : p.steps) {
    if (step.op == Op::norm && only_products_read(p, step.output)) {
      source[step.output] = {step.input, step.norm};
      p.values[step.input].moments = true;
      continue;
    }
    Step changed = step;
    if (step.op == Op::linear && source[step.input].first >= 0) {
      std::tie(changed.input, changed.input_norm) = source[step.input];
    }
    if (step.residual >= 0 && source[step.residual].first >= 0) {
      std::tie(changed.residual, changed.residual_norm) = source[step.residual];
    }
    kept.push_back(changed);
  }
  p.steps = std::move(kept);
  return tidied(std::move(p));
}

Program first_rows(const Program& program) {
  Program p = program;
  int attend = 0;
  for (size_t i = 0; i < p.steps.size(); ++i) {
    if (p.steps[i].op == Op::attend) attend = static_cast<int>(i);
  }
  const int project = p.values[p.steps[attend].input].made;
  std::vector<Step> gathers;
  std::unordered_map<int, int> gathered;
  const auto first_of = [&](int value) {
    const auto [at, fresh] = gathered.emplace(value, static_cast<int>(p.values.size()));
    if (fresh) {
      Step step{Op::gather, p.steps[project].layer};
      step.input = value;
      step.output = at->second;
      gathers.push_back(step);
      Value copy = p.values[value];
      copy.rows = Rows::sequences;
      p.values.push_back(copy);
    }
    return at->second;
  };
  p.steps[project].queries = first_of(p.steps[project].input);
  p.values[p.steps[project].output].rows = Rows::widest;
  for (size_t i = attend; i < p.steps.size(); ++i) {
    Step& step = p.steps[i];
    for (int* value : {&step.input, &step.residual}) {
      if (*value >= 0 && program.values[*value].made < project) *value = first_of(*value);
    }
    if (step.output >= 0) p.values[step.output].rows = Rows::sequences;
  }
  p.steps.insert(p.steps.begin() + project, gathers.begin(), gathers.end());
  return tidied(std::move(p));
}

namespace {

// Values that share one piece of memory, from the first one's writing to the last one's reading.
struct Piece {
  int64_t bytes = 0, at = 0;
  int made = -1, last_read = -1;
};

// The value whose memory a step's result takes over, or -1.
int heir_of(const Program& p, int step_index, const Sharing& sharing) {
  const Step& step = p.steps[step_index];
  int from = -1;
  if (step.op == Op::linear && sharing.residual) from = step.residual;
  if (step.op == Op::norm && sharing.norm) from = step.input;
  if (from < 0 || step.output < 0 || p.values[from].last_read != step_index) return -1;
  return p.values[from].rows == p.values[step.output].rows ? from : -1;
}

// The lowest place that no piece alive at the same time touches.
int64_t lowest_place(const std::vector<Piece>& placed, const Piece& piece) {
  int64_t at = 0;
  for (bool moved = true; moved;) {
    moved = false;
    for (const Piece& other : placed) {
      const bool together = piece.made <= other.last_read && other.made <= piece.last_read;
      if (!together || at >= other.at + other.bytes || other.at >= at + piece.bytes) continue;
      at = other.at + other.bytes;
      moved = true;
    }
  }
  return at;
}

}  // namespace

Placement place(const Program& program, const std::function<int64_t(int value)>& bytes, const Sharing& sharing,
                int64_t alignment) {
  const int count = static_cast<int>(program.values.size());
  std::vector<int> piece_of(count);
  std::vector<Piece> pieces;
  for (int v = 0; v < count; ++v) {  // in the order of their steps
    const Value& value = program.values[v];
    const int heir = heir_of(program, value.made, sharing);
    piece_of[v] = heir >= 0 ? piece_of[heir] : static_cast<int>(pieces.size());
    if (heir < 0) pieces.push_back({0, 0, value.made, value.last_read});
    Piece& piece = pieces[piece_of[v]];
    piece.bytes = std::max(piece.bytes, (bytes(v) + alignment - 1) / alignment * alignment);
    piece.last_read = std::max(piece.last_read, value.last_read);
  }
  Placement placement{std::vector<int64_t>(count), 0};
  std::vector<Piece> placed;
  for (Piece& piece : pieces) {
    const int made = piece.made;
    placed.erase(std::remove_if(placed.begin(), placed.end(), [made](const Piece& p) { return p.last_read < made; }),
                 placed.end());
    piece.at = lowest_place(placed, piece);
    if (piece.bytes > 0) placed.push_back(piece);
    placement.bytes = std::max(placement.bytes, piece.at + piece.bytes);
  }
  for (int v = 0; v < count; ++v) placement.at[v] = pieces[piece_of[v]].at;
  return placement;
}

}  // namespace efft
