// The list of an encoder's weights.
#include "efft/weights.h"

namespace efft {

namespace {

class List {
 public:
  explicit List(const EncoderSpec& spec) : s_(spec) {}

  std::vector<Slot> make() {
    table("word");
    if (s_.positions != PositionCount::none) table("position");
    if (s_.types) table("segment");
    if (s_.embedding_norm) {
      norm("embedding_norm", s_.embedding);
      stream_ = {Feed::norm, "embedding_norm"};
    }
    if (s_.projects()) {
      linear("projection", s_.hidden, s_.embedding, stream_);
      stream_ = {Feed::product, "projection"};
    }
    positions();
    for (layer_ = 0; layer_ < s_.distinct_layers(); ++layer_) add_layer();
    layer_ = -1;
    if (s_.norm == NormPlace::pre) norm("final_norm", s_.hidden);
    return std::move(all_);
  }

 private:
  struct Source {
    Feed feed;
    std::string name;
  };

  // What all layers share.
  void positions() {
    if (s_.rotary != Rotary::none) {
      // Of neighbours also what fp32 leaves of each frequency: their angles are doubles.
      vector("rotary", s_.rotary == Rotary::interleaved ? s_.rotary_size : s_.rotary_size / 2);
      if (!s_.local.empty()) vector("rotary_local", s_.rotary_size / 2);
    }
    if (s_.relative == Relative::buckets) vector("relative", s_.buckets * s_.heads);
    if (s_.relative == Relative::alibi) vector("slopes", s_.heads);
  }

  void add_layer() {
    const bool pre = s_.norm == NormPlace::pre, norms = s_.first_norm || layer_ > 0;
    const Source attention_norm{Feed::norm, full("attention_norm")}, output_norm{Feed::norm, full("output_norm")};
    linear("qkv", s_.context() + 2 * s_.kv_width(), s_.hidden, pre && norms ? attention_norm : stream_, s_.context());
    if (s_.c2p) vector("position_keys", 2 * s_.span() * s_.context());
    if (s_.p2c) vector("position_queries", 2 * s_.span() * s_.context());
    linear("attention_output", s_.hidden, s_.context(), {Feed::attention, full("attention")});
    if (norms) norm("attention_norm", s_.hidden);
    linear("intermediate", (s_.gated ? 2 : 1) * s_.intermediate, s_.hidden, pre ? output_norm : attention_norm);
    last_matrix().gated = s_.gated;
    linear("output", s_.hidden, s_.intermediate, {Feed::activation, full("intermediate")});
    norm("output_norm", s_.hidden);
    stream_ = pre ? Source{Feed::product, full("output")} : output_norm;
  }

  std::string full(const std::string& name) const { return layer_ < 0 ? name : std::to_string(layer_) + "." + name; }

  void linear(const std::string& name, int64_t outputs, int64_t inputs, const Source& source, int64_t queries = 0) {
    all_.push_back({full(name), SlotKind::matrix, outputs, inputs, matrix_elements_, layer_, source.feed, source.name,
                    matrices_++, queries});
    matrix_elements_ += outputs * inputs;
    vector(name + ".bias", outputs);
  }

  Slot& last_matrix() { return all_[all_.size() - 2]; }  // its bias follows it

  void table(const char* name) {
    all_.push_back({name, SlotKind::table, 0, s_.embedding});
    all_.back().index = static_cast<int>(all_.size()) - 1;
  }

  void norm(const std::string& name, int64_t width) {
    vector(name + ".gamma", width);
    vector(name + ".beta", width);
  }

  void vector(const std::string& name, int64_t size) {
    all_.push_back({full(name), SlotKind::vector, size, 1, vector_elements_, layer_, Feed::none, "", vectors_++});
    vector_elements_ += size;
  }

  const EncoderSpec& s_;
  std::vector<Slot> all_;
  Source stream_{Feed::none, ""};
  int layer_ = -1;
  int matrices_ = 0, vectors_ = 0;
  int64_t matrix_elements_ = 0, vector_elements_ = 0;
};

const char* name_of(SlotKind kind) {
  return kind == SlotKind::table ? "table" : kind == SlotKind::matrix ? "matrix" : "vector";
}

const char* name_of(Feed feed) {
  switch (feed) {
    case Feed::none:
      return "none";
    case Feed::norm:
      return "norm";
    case Feed::product:
      return "product";
    case Feed::attention:
      return "attention";
    case Feed::activation:
      return "activation";
  }
  return "none";
}

}  // namespace

std::vector<Slot> slots(const EncoderSpec& spec) { return List(spec).make(); }

int64_t arena_elements(const std::vector<Slot>& slots, SlotKind kind) {
  int64_t sum = 0;
  for (const Slot& slot : slots) sum += slot.kind == kind ? slot.elements() : 0;
  return sum;
}

std::string text(const std::vector<Slot>& slots) {
  std::string all;
  for (const Slot& s : slots) {
    all += s.name + " " + name_of(s.kind);
    for (const int64_t number : {s.rows, s.columns, s.offset, int64_t{s.layer}}) all += " " + std::to_string(number);
    all += std::string(" ") + name_of(s.feed) + " " + (s.fed_by.empty() ? "-" : s.fed_by) + "\n";
  }
  return all;
}

WeightView WeightView::rows(int64_t first, int64_t count) const {
  WeightView view = *this;
  view.data = static_cast<const char*>(data) + first * inputs * bytes_of(type);
  view.outputs = count;
  if (scales) view.scales += first;
  if (bias) view.bias += first;
  return view;
}

}  // namespace efft
