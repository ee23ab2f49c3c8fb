// The steps of a program whose matrices are in eight bits: which kernel rounds a product's input, and which makes the
// product. What a product reads is rounded by whoever writes it, where that costs no pass of its own: a LayerNorm, or a
// GELU behind another such product, in steps that are the same for every token.
#pragma once

#include "efft/cuda/linear/eight.cuh"
#include "efft/cuda/rows/quantise.cuh"
#include "eight.h"
#include "engine.h"
#include "position_steps.cuh"

namespace efft::cuda {

template <typename T>
class EightBitSteps {
 public:
  EightBitSteps(const Model& model, const Bucket& bucket, const Layout& layout, void* memory, cudaStream_t stream)
      : model_(model),
        program_(layout.program),
        bucket_(bucket),
        layout_(layout),
        memory_(memory),
        tokens_(layout.tokens(memory)),
        stream_(stream) {}

  // Whether the matrix of a product is multiplied in eight bits.
  bool takes(const Step& step) const {
    if (step.op != Op::linear || !layout_.eight_bits || !matrix(step).present()) return false;
    const Slot& slot = model_.encoder->slots[step.weight];
    const bool e4m3 = matrix(step).type == Type::e4m3;
    return eight_bit_linear(DeviceInfo::current(), e4m3, static_cast<int>(slot.rows), static_cast<int>(slot.columns));
  }

  // Enqueues the i-th step's product. Returns what is left to do of its bias and activation: nothing, or both.
  bool product(int i, const float* bias, Pointwise kind) {
    const Step& step = program_.steps[i];
    bool done = true;
    with_operand(matrix(step).type, [&](auto number) { done = product_of<decltype(number)>(step, i, bias, kind); });
    return done;
  }

  // Enqueues a LayerNorm whose result a product in eight bits reads. False where none does, or not right from here.
  bool norm(int i, AddNorm<T> a) {
    const Step& step = program_.steps[i];
    const Step* const reader = reader_of(step.output, i);
    if (reader == nullptr || model_.spec().normalise != NormKind::layer) return false;
    const int width = static_cast<int>(program_.values[step.output].width);
    if (only_reader(step.output, i, *reader)) a.out = nullptr;
    cudaError_t error = cudaSuccess;
    with_operand(matrix(*reader).type, [&](auto number) {
      using Operand = decltype(number);
      error = norm_operands(a, rows<Operand>(next_buffer(), matrix(*reader)), tokens_, bucket_.tokens, width, stream_);
    });
    if (error == cudaErrorInvalidValue) return false;  // too wide, or not aligned: nothing was launched
    check(error, "norm and rounding");
    hold(step.output, *reader);
    return true;
  }

  // Where attention writes the operand of the product behind it, where that has fixed steps; nowhere otherwise.
  ContextOperand context_of(int i) {
    const Step& step = program_.steps[i];
    const Step* const reader = reader_of(step.output, i);
    if (reader == nullptr || !only_operand(step.output, i, *reader)) return {};
    if (model_.spec().relative == Relative::disentangled) return {};  // a kernel of its own, in 16 bits
    const FixedSteps& steps = matrix(*reader).steps;
    const ContextOperand found{layout_.operands(memory_, next_buffer()), steps.inverse(), steps.zero};
    hold(step.output, *reader, true);
    return found;
  }

 private:
  const EightBitMatrix& matrix(const Step& step) const { return model_.eight->slots[step.weight]; }
  T* value(int index) const { return static_cast<T*>(layout_.value(memory_, index)); }

  template <typename Body>
  static void with_operand(Type type, Body&& body) {
    if (type == Type::e4m3) {
      body(__nv_fp8_e4m3());
    } else {
      body(uint8_t());
    }
  }

  // The first product in eight bits that reads a value, or nullptr.
  const Step* reader_of(int value, int made) const {
    for (int i = made + 1; i <= program_.values[value].last_read; ++i) {
      const Step& step = program_.steps[i];
      if (step.input == value && takes(step)) return &step;
    }
    return nullptr;
  }
  bool only_reader(int value, int made, const Step& reader) const {
    for (int i = made + 1; i <= program_.values[value].last_read; ++i) {
      const Step& step = program_.steps[i];
      if (&step != &reader && (step.input == value || step.queries == value)) return false;
      if (step.residual == value) return false;
    }
    return true;
  }

  // Whether a value is wanted as the reader's operand alone, in steps that need no look at a whole row.
  bool only_operand(int value, int made, const Step& reader) const {
    return matrix(reader).steps.given() && matrix(reader).factors == nullptr && only_reader(value, made, reader);
  }

  // Operands go to one of two buffers in turn: the product that reads one may write the other.
  int next_buffer() const { return held_.buffer ^ 1; }
  void hold(int value, const Step& reader, bool fixed = false) { held_ = {value, reader.weight, next_buffer(), fixed}; }
  template <typename Operand>
  OperandRows<Operand> rows(int buffer, const EightBitMatrix& of) const {
    return {static_cast<Operand*>(layout_.operands(memory_, buffer)), layout_.operand_scales(memory_, buffer),
            of.factors, of.steps};
  }

  // The input of a product, rounded for it.
  void ensure_operand(const Step& step) {
    if (held_.value == step.input && held_.weight == step.weight) return;
    with_operand(matrix(step).type, [&](auto number) {
      using Operand = decltype(number);
      const int width = static_cast<int>(program_.values[step.input].width);
      check(quantise_rows(static_cast<const T*>(value(step.input)), rows<Operand>(next_buffer(), matrix(step)), tokens_,
                          bucket_.tokens, width, stream_),
            "rounding");
    });
    hold(step.input, step);
  }

  template <typename Operand>
  bool product_of(const Step& step, int i, const float* bias, Pointwise kind) {
    ensure_operand(step);
    const bool gelu = kind == Pointwise::gelu && step.residual < 0 && !step.gated;
    const bool done = !step.gated && (gelu || kind == Pointwise::none);
    const Step* const reader = gelu ? reader_of(step.output, i) : nullptr;
    const bool rounds =
        reader != nullptr && matrix(*reader).type == matrix(step).type && only_operand(step.output, i, *reader);
    if (rounds) {
      using Types = EightBitTypes<Operand, Operand, __half>;
      const int buffer = next_buffer();
      auto a = arguments<Types>(step, bias, Pointwise::gelu);
      a.epilogue.out = static_cast<Operand*>(layout_.operands(memory_, buffer));
      a.scales.result = matrix(*reader).steps;
      launch_product(step, a);
      hold(step.output, *reader, true);
      return true;
    }
    auto a = arguments<EightBitTypes<Operand, T, T>>(step, done ? bias : nullptr, gelu ? kind : Pointwise::none);
    // What is gated is as wide as both halves, and its activation and bias are a kernel's of their own.
    a.epilogue.out = step.gated ? static_cast<T*>(layout_.halves(memory_)) : value(step.output);
    if (step.residual >= 0) a.epilogue.residual = value(step.residual);
    launch_product(step, a);
    return done;
  }

  template <typename Types>
  EightBitArguments<Types> arguments(const Step& step, const float* bias, Pointwise kind) const {
    const EightBitMatrix& m = matrix(step);
    const Slot& slot = model_.encoder->slots[step.weight];
    EightBitArguments<Types> a{};
    a.epilogue.bias = bias;
    a.epilogue.pointwise = kind;
    a.tokens = tokens_;
    a.n = static_cast<int>(slot.rows);
    a.k = static_cast<int>(slot.columns);
    a.scales.rows = held_.fixed ? nullptr : layout_.operand_scales(memory_, held_.buffer);
    a.scales.all = m.steps.scale();
    a.scales.columns = m.scales;
    a.scales.sums = m.sums;
    return a;
  }

  template <typename Types>
  void launch_product(const Step& step, const EightBitArguments<Types>& a) {
    const auto* const x = static_cast<const typename Types::Operand*>(layout_.operands(memory_, held_.buffer));
    const auto* const w = static_cast<const typename Types::Weight*>(matrix(step).w);
    const EightBitShape shape{bucket_.tokens, a.n, a.k, a.epilogue.pointwise == Pointwise::gelu};
    const EightBitCut cut = choose_eight_bits(DeviceInfo::current(), shape);
    check(eight_bit_rows(x, w, a, bucket_.tokens, cut, stream_), "a product in eight bits");
  }

  const Model& model_;
  const Program& program_;
  const Bucket& bucket_;
  const Layout& layout_;
  void* const memory_;
  const int* const tokens_;
  const cudaStream_t stream_;
  // The operand made last: of which value, for which matrix, where; fixed: in steps that are the same for every token,
  // with no scales beside it.
  struct {
    int value = -1, weight = -1, buffer = 0;
    bool fixed = false;
  } held_;
};

// In fp32 nothing is multiplied in eight bits.
template <>
class EightBitSteps<float> {
 public:
  EightBitSteps(const Model&, const Bucket&, const Layout&, void*, cudaStream_t) {}
  bool takes(const Step&) const { return false; }
  bool product(int, const float*, Pointwise) { return false; }
  bool norm(int, const AddNorm<float>&) { return false; }
  ContextOperand context_of(int) { return {}; }
};

}  // namespace efft::cuda
