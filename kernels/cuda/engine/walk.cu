// Walks a program and launches what its steps ask for. Once for a direct call and once for a capture; a graph's replay
// does not come here.
#include <stdexcept>
#include <string>
#include <type_traits>

#include "../linear/matmul.h"
#include "efft/cuda/for_type.cuh"
#include "efft/cuda/linear/linear.cuh"
#include "efft/cuda/rows/add_norm.cuh"
#include "efft/cuda/rows/bias_activation.cuh"
#include "efft/cuda/rows/embed_norm.cuh"
#include "efft/cuda/rows/gate.cuh"
#include "efft/cuda/rows/pool.cuh"
#include "eight_steps.cuh"
#include "engine.h"
#include "fold.h"
#include "position_steps.cuh"

namespace efft::cuda {
namespace {

template <typename T>
class Walk {
 public:
  Walk(const Model& model, const Bucket& bucket, const Layout& layout, void* memory, cudaStream_t stream)
      : model_(model),
        spec_(model.spec()),
        slots_(model.encoder->slots),
        program_(layout.program),
        bucket_(bucket),
        layout_(layout),
        memory_(memory),
        unpadded_(layout.unpadded(memory)),
        tokens_(layout.tokens(memory)),
        device_(DeviceInfo::current()),
        stream_(stream),
        eight_bits_(model, bucket, layout, memory, stream),
        positions_(model, bucket, layout, memory, stream),
        part_width_(program_.values.size()) {}

  // Steps [first, end).
  void run(int first, int end) {
    for (int i = first; i < end; ++i) {
      const Step& step = program_.steps[i];
      switch (step.op) {
        case Op::embed:
          embed(step);
          break;
        case Op::linear:
          linear(i);
          break;
        case Op::attend:
          attend(i);
          break;
        case Op::norm:
          norm(i);
          break;
        case Op::pool:
          pool(i);
          break;
        default:
          throw std::runtime_error("efft: the CUDA engine does not run this step");
      }
    }
  }
  int steps() const { return static_cast<int>(program_.steps.size()); }

 private:
  static constexpr bool kTwoBytes = sizeof(T) == 2;

  T* value(int index) const { return static_cast<T*>(layout_.value(memory_, index)); }
  const T* matrix(int slot) const { return static_cast<const T*>(model_.matrices) + slots_[slot].offset; }
  const float* vector(int slot) const { return slot < 0 ? nullptr : model_.vectors + slots_[slot].offset; }
  float epsilon() const { return static_cast<float>(spec_.epsilon); }
  int width(int value) const { return static_cast<int>(program_.values[value].width); }

  // Whether the next step is `op` on this step's result.
  bool next_is(int i, Op op) const {
    const Step* const next = i + 1 < steps() ? &program_.steps[i + 1] : nullptr;
    return next != nullptr && next->op == op && next->input == program_.steps[i].output;
  }

  void embed(const Step& step) {
    const EmbeddingTables<T> tables{static_cast<const T*>(model_.word),
                                    static_cast<const T*>(model_.position),
                                    static_cast<const T*>(model_.segment),
                                    model_.words,
                                    model_.positions,
                                    model_.segments};
    positions_.start();
    const bool by_ids = spec_.positions == PositionCount::ids;
    const EmbeddingNorm norm{vector(step.norm.gamma),
                             vector(step.norm.beta),
                             epsilon(),
                             spec_.positions,
                             static_cast<int>(by_ids ? spec_.pad : spec_.offset),
                             spec_.normalise,
                             spec_.dropout_token,
                             positions_.factors()};
    check(embed_norm(unpadded_.call, unpadded_.cu_seqlens, unpadded_.rows, tokens_, tables, norm, value(step.output),
                     bucket_.tokens, width(step.output), stream_),
          "the embeddings");
  }

  // Attention adds the bias of queries, keys and values while it loads them; folded products and those of eight bits
  // add all of theirs, where it costs nothing.
  bool attention_adds_bias(const Step& maker) const {
    return layout_.path != Path::small && !positions_.want_biases() && !eight_bits_.takes(maker);
  }

  // Where a product goes: a gated one to where both of its halves find room.
  T* target(const Step& step) const {
    return step.gated ? static_cast<T*>(layout_.halves(memory_)) : value(step.output);
  }

  void linear(int i) {
    const Step& step = program_.steps[i];
    const bool closes = step.residual >= 0;
    const Pointwise kind = step.activates && !step.gated ? pointwise(spec_.activation) : Pointwise::none;
    const float* bias = next_is(i, Op::attend) && attention_adds_bias(step) ? nullptr : vector(step.bias);
    if (eight_bits_.takes(step)) {
      if (!eight_bits_.product(i, bias, kind)) finish_library(i, bias, kind);
      return;
    }
    const T* const w = matrix(step.weight);
    LinearShape shape;
    shape.own_only = layout_.path != Path::library;
    shape.rows = shape.own_only ? expected_tokens(bucket_.tokens) : bucket_.tokens;
    shape.n = static_cast<int>(slots_[step.weight].rows);
    shape.k = static_cast<int>(slots_[step.weight].columns);
    shape.pointwise = kind;
    shape.closes = closes;
    shape.aligned = aligned(w) && aligned(value(step.input));
    shape.two_bytes = kTwoBytes;
    if (step.input_norm.present()) shape.moments = input_norm(step).parts(shape.k);
    const LinearPlan plan = choose_linear(device_, shape);
    if (plan.backend == Backend::library) return library(i, shape, w, bias, kind);
    if constexpr (kTwoBytes) own(step, shape, plan, bias);
    if (step.gated) gate(step, nullptr);
  }

  void gate(const Step& step, const float* bias) {
    const T* const halves = target(step);
    check(cuda::gate(halves, bias, pointwise(spec_.activation), value(step.output), tokens_, bucket_.tokens,
                     width(step.output), stream_),
          "activation and gate");
  }

  // LayerNorm of a product's input, but for the row sums of its weights.
  InputNorm input_norm(const Step& step) const {
    return {nullptr, epsilon(), layout_.moments(memory_, step.input), part_width_[step.input],
            layout_.row_norms(memory_, step.input)};
  }

  void own(const Step& step, const LinearShape& shape, const LinearPlan& plan, const float* bias) {
    using Types = LinearTypes<T>;
    LinearArguments<Types> a{};
    const T* w = matrix(step.weight);
    if (step.input_norm.present()) {
      const auto folded = folded_matrix<T>(*model_.encoder, model_.folded, step.weight);
      a.norm = input_norm(step);
      a.norm.weight_sums = folded.sums;
      w = folded.w, bias = folded.bias;
    }
    a.epilogue.bias = bias;
    a.epilogue.pointwise = shape.pointwise;
    if (step.residual >= 0) a.epilogue.residual = value(step.residual);
    if (step.residual_norm.present()) {
      a.epilogue.residual_norm = layout_.row_norms(memory_, step.residual);
      a.epilogue.gamma = vector(step.residual_norm.gamma);
      a.epilogue.beta = vector(step.residual_norm.beta);
    }
    a.epilogue.out = target(step);
    if (program_.values[step.output].moments) {
      a.epilogue.moments = layout_.moments(memory_, step.output);
      part_width_[step.output] = plan.moment_columns();
    }
    a.tokens = tokens_;
    a.n = shape.n;
    a.k = shape.k;
    check(cuda::linear(value(step.input), w, a, bucket_.tokens, plan, stream_), "a product");
  }

  // cuBLASLt adds the residual; a LayerNorm that follows, the bias.
  void library(int i, const LinearShape& shape, const T* w, const float* bias, Pointwise kind) {
    const Step& step = program_.steps[i];
    const Product product{model_.type, model_.tf32, bucket_.tokens, shape.n, shape.k};
    const T* const addend = step.residual >= 0 ? value(step.residual) : nullptr;
    T* const y = target(step);
    Matmul::of_current_device().run(product, value(step.input), w, addend, y, layout_.scratch(memory_), stream_);
    finish_library(i, bias, kind);
  }

  // What is left of a product that is sums and residual.
  void finish_library(int i, const float* bias, Pointwise kind) {
    const Step& step = program_.steps[i];
    if (step.gated) return gate(step, bias);
    T* const y = value(step.output);
    if (bias == nullptr && kind == Pointwise::none) return;
    if (kind == Pointwise::none && next_is(i, Op::norm)) {
      owed_bias_ = bias;
      return;
    }
    if (step.residual >= 0 && kind != Pointwise::none)
      throw std::runtime_error("efft: no kernel activates a product that adds a residual");
    check(
        bias_activation(static_cast<const T*>(y), bias, kind, y, tokens_, bucket_.tokens, width(step.output), stream_),
        "bias and activation");
  }

  void attend(int i) {
    const Step& step = program_.steps[i];
    const Step& maker = program_.steps[program_.values[step.input].made];
    positions_.attend(step, value(step.input), attention_adds_bias(maker) ? vector(maker.bias) : nullptr,
                      value(step.output), eight_bits_.context_of(i));
  }

  // The last one writes the padded result itself.
  void norm(int i) {
    const Step& step = program_.steps[i];
    T* const x = value(step.input);
    // What the product before owed belongs to the sum that later steps read, too.
    const bool read_again = owed_bias_ != nullptr && program_.values[step.input].last_read > i;
    const AddNorm<T> a{x,
                       owed_bias_,
                       nullptr,
                       vector(step.norm.gamma),
                       vector(step.norm.beta),
                       epsilon(),
                       value(step.output),
                       read_again ? x : nullptr,
                       spec_.normalise};
    owed_bias_ = nullptr;
    const int columns = width(step.output);
    if (!writes_result(i) && eight_bits_.norm(i, a)) return;
    if (writes_result(i)) {
      check(add_norm_padded(a, unpadded_.slots, unpadded_.call, bucket_.batch * bucket_.length, columns, stream_),
            "the result");
    } else {
      check(add_norm(a, tokens_, bucket_.tokens, columns, stream_), "residual and norm");
    }
  }

  bool writes_result(int i) const { return model_.output == Output::hidden && next_is(i, Op::pool); }

  void pool(int i) {
    const Step& step = program_.steps[i];
    if (model_.output == Output::hidden) {
      if (i > 0 && program_.steps[i - 1].op == Op::norm) return;
      throw std::runtime_error("efft: the CUDA engine wants a LayerNorm before the result");
    }
    check(cuda::pool<T>(value(step.input), model_.output, unpadded_.cu_seqlens, unpadded_.call, bucket_.batch,
                        width(step.input), stream_),
          "the result");
  }

  const Model& model_;
  const EncoderSpec& spec_;
  const std::vector<Slot>& slots_;
  const Program& program_;
  const Bucket& bucket_;
  const Layout& layout_;
  void* const memory_;
  const Unpadded unpadded_;
  const int* const tokens_;
  const DeviceInfo& device_;
  const cudaStream_t stream_;
  EightBitSteps<T> eight_bits_;
  const PositionSteps<T> positions_;
  std::vector<int> part_width_;       // of each value with moments: elements that one of them tells of
  const float* owed_bias_ = nullptr;  // to the value that the last product wrote
};

}  // namespace

void enqueue_front(const Model& model, const Call& call, const Bucket& bucket, const Layout& layout, void* memory,
                   const TokenReport& report, cudaStream_t stream) {
  check(unpad(call, bucket.batch, layout.unpadded(memory), report, stream), "padding removal");
  for_type(model.type, [&](auto zero) {
    Walk<decltype(zero)>(model, bucket, layout, memory, stream).run(0, layout.front_steps());
  });
}

void enqueue_encoder(const Model& model, const Bucket& bucket, const Layout& layout, void* memory,
                     cudaStream_t stream) {
  for_type(model.type, [&](auto zero) {
    Walk<decltype(zero)> walk(model, bucket, layout, memory, stream);
    walk.run(layout.front_steps(), walk.steps());
  });
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("efft: ") + what + " failed: " + cudaGetErrorString(error));
}

}  // namespace efft::cuda
