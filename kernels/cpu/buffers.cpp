#include "efft/cpu/buffers.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "efft/cpu/schedule.h"

namespace efft::cpu {

namespace {

// In which forms a value is wanted.
struct Form {
  bool stream = false;  // it is normalised, added or handed back: fp32
  bool rows = false;
  bool operand = false;
  Type operand_type = Type::f32;
  const float* factors = nullptr;
  float step = 0, zero = 0;
};

class Forms {
 public:
  Forms(const Call& call, const Program& program)
      : call_(call), program_(program), activation_(call.matrices.activation_type()), forms_(program.values.size()) {
    // From the end, so that what a gather copies is known before its source is asked for.
    for (size_t i = program.steps.size(); i-- > 0;) read(program.steps[i]);
    for (size_t v = 0; v < forms_.size(); ++v) settle(static_cast<int>(v));
  }

  const Form& operator[](int value) const { return forms_[value]; }
  Type rows_type(int value) const { return forms_[value].stream ? Type::f32 : activation_; }

 private:
  void read(const Step& step) {
    if (step.residual >= 0) forms_[step.residual].stream = forms_[step.residual].rows = true;
    if (step.op == Op::linear) {
      const Slot& slot = call_.encoder.slots[step.weight];
      const Panels weights = call_.matrices.panels(slot);
      for (const int value : {step.input, step.queries}) {
        if (value >= 0) want_operand(value, weights.type, weights.factors, weights.step, weights.zero);
      }
    } else if (step.op == Op::gather) {
      merge(step.output, step.input);
    } else if (step.input >= 0) {
      forms_[step.input].rows = true;
      if (step.op != Op::attend) forms_[step.input].stream = true;
    }
    // These write fp32 whatever their readers want.
    if (step.op == Op::embed || step.op == Op::norm || step.op == Op::gather) forms_[step.output].stream = true;
  }

  // Whatever is wanted of a gathered value is copied, form by form.
  void merge(int gathered, int source) {
    const Form& from = forms_[gathered];
    Form& to = forms_[source];
    to.stream = true;
    to.rows = to.rows || from.rows;
    if (from.operand) want_operand(source, from.operand_type, from.factors, from.step, from.zero);
  }

  void want_operand(int value, Type type, const float* factors, float step, float zero) {
    Form& form = forms_[value];
    if (form.operand && (form.operand_type != type)) {
      throw std::logic_error("one value as the operand of two types");
    }
    form.operand = true;
    form.operand_type = type;
    form.factors = factors;
    form.step = step;
    form.zero = zero;
  }

  void settle(int value) {
    Form& form = forms_[value];
    const Step& maker = program_.steps[program_.values[value].made];
    const bool only_rows = maker.op == Op::linear || maker.op == Op::attend;  // whoever makes it writes no operands
    // A norm may write over its input, which lies where its own rows would.
    const bool over_input =
        maker.op == Op::norm && program_.values[maker.input].last_read == program_.values[value].made;
    if (form.operand && form.operand_type == rows_type(value)) {
      form.operand = false;
      form.rows = true;
    }
    form.rows = form.rows || only_rows || over_input;
  }

  const Call& call_;
  const Program& program_;
  const Type activation_;
  std::vector<Form> forms_;
};

int64_t scratch_bytes(const EncoderSpec& spec, int64_t longest) {
  const Kernels& k = kernels();
  const bool apart = spec.relative == Relative::disentangled;
  const int64_t rows = apart ? std::min(2 * spec.span(), 2 * longest) : 0;
  const int64_t bytes =
      std::max({product_scratch_bytes(k.f32), product_scratch_bytes(k.bf16), product_scratch_bytes(k.s8),
                k.attend_scratch(longest, spec.head_size(), rows), std::max(spec.hidden, spec.embedding) * 4 + 64});
  return (bytes + 4095) / 4096 * 4096;
}

}  // namespace

Buffers::Buffers(const Call& call, const Program& program, const Tokens& tokens, int64_t more, Workspace& workspace)
    : values_(program.values.size()) {
  const Forms forms(call, program);
  std::vector<int64_t> operand_at(values_.size()), scales_at(values_.size());
  const auto bytes = [&](int v) {
    const Value& value = program.values[v];
    const Form& form = forms[v];
    Stored& stored = values_[v];
    stored.count = value.rows == Rows::tokens      ? tokens.count
                   : value.rows == Rows::sequences ? call.batch.batch
                                                   : std::max(tokens.count, call.batch.batch);
    Carver carver;
    const auto rows_of = [&](Type type) {
      return RowBlock{nullptr, padded_stride(value.width, type), value.width, type, nullptr};
    };
    if (form.rows) {
      stored.rows = rows_of(forms.rows_type(v));
      carver.take(stored.count * stored.rows.row_bytes() + 64);  // attention reads whole vectors of the last head
    }
    if (form.operand) {
      stored.operand = rows_of(form.operand_type);
      stored.factors = form.factors;
      stored.step = form.step;
      stored.zero = form.zero;
      operand_at[v] = carver.take(stored.count * stored.operand.row_bytes());
      scales_at[v] = form.operand_type == Type::s8 ? carver.take(stored.count * int64_t{sizeof(RowScale)}) : 0;
    }
    return carver.used();
  };
  const Placement placement = place(program, bytes, {true, true}, 64);
  scratch_bytes_ = scratch_bytes(call.encoder.spec, tokens.longest);
  char* base = workspace.reserve(placement.bytes + call.threads * scratch_bytes_ + more);
  scratch_ = base + placement.bytes;
  more_ = scratch_ + call.threads * scratch_bytes_;
  for (size_t v = 0; v < values_.size(); ++v) {
    char* at = base + placement.at[v];
    Stored& stored = values_[v];
    if (forms[static_cast<int>(v)].rows) stored.rows.data = at;
    if (!forms[static_cast<int>(v)].operand) continue;
    stored.operand.data = at + operand_at[v];
    if (stored.operand.type == Type::s8) stored.operand.scales = reinterpret_cast<RowScale*>(at + scales_at[v]);
  }
}

}  // namespace efft::cpu
