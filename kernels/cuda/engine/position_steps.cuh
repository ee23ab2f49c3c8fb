// What a walk launches for an encoder's positions and its attention.
#pragma once

#include "efft/cuda/attention/attention.cuh"
#include "efft/cuda/attention/disentangled.cuh"
#include "efft/cuda/rows/positions.cuh"
#include "efft/cuda/rows/rotate.cuh"
#include "engine.h"
#include "position_tables.h"

namespace efft::cuda {

// Where attention's result goes as an operand of eight bits (see AttentionArguments); out nullptr: it does not.
struct ContextOperand {
  void* out = nullptr;
  float inverse = 0, zero = 0;
};

template <typename T>
class PositionSteps {
 public:
  PositionSteps(const Model& model, const Bucket& bucket, const Layout& layout, void* memory, cudaStream_t stream)
      : model_(model),
        spec_(model.spec()),
        slots_(model.encoder->slots),
        bucket_(bucket),
        layout_(layout),
        memory_(memory),
        unpadded_(layout.unpadded(memory)),
        stream_(stream) {}

  // Whether attention wants qkv with all of its biases: where some are multiplied by positions, or would have to be
  // added to no more than a part of a head.
  bool want_biases() const {
    return spec_.relative == Relative::disentangled || (rotates() && spec_.rotary_size != spec_.head);
  }

  // What all layers read, before the embeddings.
  void start() const {
    if (spec_.dropout_token != EncoderSpec::kNoToken) {
      check(word_factors(unpadded_.call, unpadded_.cu_seqlens, unpadded_.rows, spec_.dropout_token, factors(),
                         bucket_.batch, stream_),
            "the words' factors");
    }
    int made[2] = {-1, -1}, relative = -1;
    for (const Step& step : layout_.program.steps) {
      if (step.op != Op::attend) continue;
      made[step.attention.local] = step.attention.rotary;
      relative = step.attention.relative;
    }
    for (const bool local : {false, true}) {
      if (made[local] >= 0) make_angles(made[local], local);
    }
    if (spec_.relative != Relative::none) make_distances(relative);
  }

  // For embed_norm; nullptr: none.
  float* factors() const {
    return spec_.dropout_token == EncoderSpec::kNoToken ? nullptr : layout_.word_factors(memory_);
  }

  // bias: of qkv, or nullptr where it is added already.
  void attend(const Step& step, T* qkv, const float* bias, T* out, const ContextOperand& operand) const {
    if (step.attention.rotary >= 0) rotate(step, qkv, bias);
    AttentionArguments<T> a{};
    a.qkv = qkv;
    a.q_bias = rotates() ? nullptr : bias;
    a.v_bias = bias == nullptr ? nullptr : bias + spec_.context() + spec_.kv_width();
    a.cu_seqlens = unpadded_.cu_seqlens;
    a.out = out;
    a.batch = bucket_.batch;
    a.heads = static_cast<int>(spec_.heads);
    a.kv_heads = static_cast<int>(spec_.kv_heads);
    a.head_size = static_cast<int>(spec_.head);
    a.scale = static_cast<float>(spec_.scale);
    if (operand.out != nullptr) {
      a.out = static_cast<T*>(operand.out);
      a.operand_inverse = operand.inverse;
      a.operand_zero = operand.zero;
    }
    if (spec_.relative == Relative::disentangled) return disentangled(step, a);
    const bool adds = spec_.relative != Relative::none;
    if (adds && step.attention.local) return run<WindowBiasScores>(a);
    if (adds) return run<BiasScores>(a);
    if (step.attention.local) return run<WindowScores>(a);
    run<FullScores>(a);
  }

 private:
  bool rotates() const { return spec_.rotary != Rotary::none; }
  int pairs() const { return static_cast<int>(spec_.rotary_size / 2); }
  const float* vector(int slot) const { return model_.vectors + slots_[slot].offset; }

  void make_angles(int slot, bool local) const {
    const AngleTable table{vector(slot), layout_.angles(memory_, local), pairs(), spec_.rotary == Rotary::interleaved};
    check(angle_table(table, unpadded_.call, unpadded_.cu_seqlens, unpadded_.rows, layout_.tokens(memory_),
                      bucket_.tokens, stream_),
          "rotary angles");
  }

  void make_distances(int slot) const {
    const bool apart = spec_.relative == Relative::disentangled;
    DistanceTable table{};
    table.kind = spec_.relative;
    table.relative = slot < 0 ? nullptr : vector(slot);
    table.out = layout_.distances(memory_);
    table.length = bucket_.length;
    table.heads = static_cast<int>(spec_.heads);
    table.over_scale = static_cast<float>(1.0 / spec_.scale);
    table.span = static_cast<int>(apart ? spec_.span() : spec_.buckets / 2);
    check(distance_table(table, buckets_of(spec_), stream_), "distances");
  }

  void rotate(const Step& step, T* qkv, const float* bias) const {
    const Rotation<T> rotation{qkv,
                               bias,
                               layout_.angles(memory_, step.attention.local),
                               static_cast<int>(spec_.context() + 2 * spec_.kv_width()),
                               static_cast<int>(spec_.heads + spec_.kv_heads),
                               static_cast<int>(spec_.head),
                               pairs(),
                               spec_.rotary == Rotary::interleaved};
    check(cuda::rotate(rotation, layout_.tokens(memory_), bucket_.tokens, stream_), "rotary embedding");
  }

  template <typename Score>
  void run(const AttentionArguments<T>& plain) const {
    AttentionArguments<T, Score> a{plain.qkv,   plain.q_bias, plain.v_bias,   plain.cu_seqlens, plain.out,
                                   plain.batch, plain.heads,  plain.kv_heads, plain.head_size,  plain.scale,
                                   {}};
    a.operand_inverse = plain.operand_inverse;
    a.operand_zero = plain.operand_zero;
    if constexpr (Score::kNarrows) a.score.reach = static_cast<int>(spec_.window);
    if constexpr (Score::kAdds) {
      a.score.table = static_cast<const float*>(layout_.distances(memory_));
      a.score.origin = DistanceTable::origin_of(bucket_.length);
      a.score.stride = DistanceTable::stride_of(bucket_.length);
    }
    check(attention(a, bucket_.length, bucket_.tokens, stream_), "attention");
  }

  void disentangled(const Step& step, const AttentionArguments<T>& a) const {
    const DisentangledArguments<T> d{
        a, table_of(step.attention.position_keys, 0), table_of(step.attention.position_queries, 1),
        static_cast<const int*>(layout_.distances(memory_)), DistanceTable::origin_of(bucket_.length)};
    check(disentangled_attention(d, bucket_.length, stream_), "disentangled attention");
  }

  // A table of positions in the type of the activations; which: of the workspace's two, where it is not prepared.
  const T* table_of(int slot, int which) const {
    if (slot < 0) return nullptr;
    if constexpr (sizeof(T) == 4) {
      return vector(slot);
    } else {
      if (model_.position_tables != nullptr)
        return static_cast<const T*>(model_.position_tables) + position_table_at(*model_.encoder, slot);
      T* const to = static_cast<T*>(layout_.position_table(memory_, which));
      check(round_to<T>(vector(slot), to, slots_[slot].elements(), stream_), "a table of positions");
      return to;
    }
  }

  const Model& model_;
  const EncoderSpec& spec_;
  const std::vector<Slot>& slots_;
  const Bucket& bucket_;
  const Layout& layout_;
  void* const memory_;
  const Unpadded unpadded_;
  const cudaStream_t stream_;
};

}  // namespace efft::cuda
