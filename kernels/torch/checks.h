// Argument checks that every device's binding makes. Each failure names the argument.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "efft/program.h"

namespace efft {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_type(const char* name, const Tensor& tensor, ScalarType type) {
  STD_TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ", torch::headeronly::toString(type), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

// The types that activations and weights may have.
inline void check_float_type(const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                  ": expected Float, BFloat16 or Half, got ", torch::headeronly::toString(type));
}

constexpr int64_t kAnySize = -1;

inline void check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  const int64_t dims = static_cast<int64_t>(shape.size());
  STD_TORCH_CHECK(tensor.dim() == dims, name, ": expected ", dims, " dimensions, got ", tensor.dim());
  int64_t i = 0;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(size == kAnySize || tensor.size(i) == size, name, ": expected size ", size, " in dimension ", i,
                    ", got ", tensor.size(i));
    ++i;
  }
}

// fp32, of exactly these sizes.
inline void check_vector(const char* name, const Tensor& tensor, int64_t size) {
  check_type(name, tensor, ScalarType::Float);
  check_shape(name, tensor, {size});
}

// What the shapes of ids and mask say: see efft::encode in schema.cpp.
struct InputSizes {
  bool packed;
  int64_t batch, length;  // packed: the length of the longest sequence
  int64_t cells;          // of ids
};

inline InputSizes sizes_of(const Tensor& ids, const Tensor& mask) {
  if (ids.dim() == 1) return {true, mask.size(0) - 1, mask.size(1), ids.size(0)};
  return {false, ids.size(0), ids.size(1), ids.numel()};
}

// ids and segments int64 [T], mask int64 [B + 1, S]. What the first column of mask holds is for the engines to check.
inline void check_packed_inputs(const Tensor& ids, const Tensor& segments, const Tensor& mask) {
  check_shape("segments", segments, {ids.size(0)});
  check_shape("mask", mask, {kAnySize, kAnySize});
  STD_TORCH_CHECK(mask.size(0) > 0, "mask: of packed ids it has a row more than there are sequences, got none");
  constexpr int64_t kMost = int64_t{1} << 31;
  const bool fits = mask.size(0) < kMost && mask.size(1) < kMost && (mask.size(0) - 1) * mask.size(1) < kMost;
  STD_TORCH_CHECK(fits && ids.size(0) < kMost, "ids: more than 2^31 tokens in one batch");
  STD_TORCH_CHECK(ids.size(0) <= (mask.size(0) - 1) * mask.size(1), "ids: expected at most ", mask.size(0) - 1,
                  " sequences of ", mask.size(1), ", got ", ids.size(0), " tokens");
}

// ids, segments and mask: int64, one common shape [B, S], or packed.
inline void check_inputs(const Tensor& ids, const Tensor& segments, const Tensor& mask) {
  check_type("ids", ids, ScalarType::Long);
  check_type("segments", segments, ScalarType::Long);
  check_type("mask", mask, ScalarType::Long);
  if (ids.dim() == 1) return check_packed_inputs(ids, segments, mask);
  check_shape("ids", ids, {kAnySize, kAnySize});
  check_shape("segments", segments, {ids.size(0), ids.size(1)});
  check_shape("mask", mask, {ids.size(0), ids.size(1)});
  STD_TORCH_CHECK(ids.size(0) * ids.size(1) < (int64_t{1} << 31), "ids: more than 2^31 tokens in one batch");
}

// One device: what the dispatcher picked the implementation by may have been either.
inline void check_device(const char* name, const Tensor& tensor, const char* other_name, const Tensor& other) {
  const auto text = [](const Tensor& t) {
    return t.is_cpu() ? std::string("cpu") : "device " + std::to_string(t.get_device_index());
  };
  const bool same = tensor.is_cpu() == other.is_cpu() && tensor.is_cuda() == other.is_cuda() &&
                    (other.is_cpu() || tensor.get_device_index() == other.get_device_index());
  STD_TORCH_CHECK(same, name, ": on ", text(tensor), ", but ", other_name, " is on ", text(other));
}

// word, position, segment: one float type, `width` columns.
inline void check_tables(const Tensor& word, const Tensor& position, const Tensor& segment, int64_t width) {
  check_float_type("word", word);
  check_type("position", position, word.scalar_type());
  check_type("segment", segment, word.scalar_type());
  check_shape("word", word, {kAnySize, width});
  check_shape("position", position, {kAnySize, width});
  check_shape("segment", segment, {kAnySize, width});
}

// The tensors that hold an encoder's slots, by name.
struct Weights {
  Tensor word, position, segment, matrices, vectors;
};

// Their number. What they hold check_weights looks at.
inline Weights weights_of(const std::vector<Tensor>& tensors) {
  STD_TORCH_CHECK(tensors.size() == kArenas, "weights: expected ", int{kArenas},
                  " tensors (word, position, segment, matrices, vectors), got ", tensors.size());
  return {tensors[kWord], tensors[kPosition], tensors[kSegment], tensors[kMatrices], tensors[kVectors]};
}

// All but the matrices, whose form is the device's affair (see check_matrices); one device.
inline void check_weights(const Weights& weights, const Lowered& encoder) {
  check_device("position", weights.position, "word", weights.word);
  check_device("segment", weights.segment, "word", weights.word);
  check_device("matrices", weights.matrices, "word", weights.word);
  check_device("vectors", weights.vectors, "word", weights.word);
  check_tables(weights.word, weights.position, weights.segment, encoder.spec.embedding);
  check_vector("vectors", weights.vectors, arena_elements(encoder.slots, SlotKind::vector));
}

// The plain arena: a float type, all matrices without gaps.
inline void check_matrices(const Tensor& matrices, const Lowered& encoder) {
  check_float_type("matrices", matrices);
  check_shape("matrices", matrices, {arena_elements(encoder.slots, SlotKind::matrix)});
}

// Everything an encoder is called with, but the matrices' form: one device, types, shapes.
inline void check_call(const Tensor& ids, const Tensor& segments, const Tensor& mask, const Weights& weights,
                       const Lowered& encoder) {
  check_inputs(ids, segments, mask);
  check_device("segments", segments, "ids", ids);
  check_device("mask", mask, "ids", ids);
  check_device("word", weights.word, "ids", ids);
  check_weights(weights, encoder);
}

// The result's sizes.
inline std::vector<int64_t> result_sizes(const InputSizes& inputs, const EncoderSpec& spec, Output output) {
  if (output != Output::hidden) return {inputs.batch, spec.hidden};
  if (inputs.packed) return {inputs.cells, spec.hidden};
  return {inputs.batch, inputs.length, spec.hidden};
}

// The arguments of efft::encoder, the operator of archives built by 0.1.0.
inline EncoderSpec spec_of(int64_t layers, int64_t hidden, int64_t embedding, int64_t heads, int64_t intermediate,
                           const std::string& activation, bool pre_norm, double epsilon, int64_t position_offset,
                           bool count_positions) {
  EncoderSpec spec;
  spec.layers = layers;
  spec.hidden = hidden;
  spec.embedding = embedding;
  spec.heads = heads;
  spec.intermediate = intermediate;
  spec.activation = activation_of(activation);
  spec.norm = pre_norm ? NormPlace::pre : NormPlace::post;
  spec.epsilon = epsilon;
  spec.positions = count_positions ? PositionCount::mask : PositionCount::slot;
  spec.offset = position_offset;
  settle(spec);
  return spec;
}

// The arguments of efft::prepare, of the same archives: what decides neither order nor size is as good as any.
inline EncoderSpec spec_of(int64_t layers, int64_t hidden, int64_t embedding, int64_t intermediate, bool pre_norm) {
  return spec_of(layers, hidden, embedding, hidden / 2, intermediate, "gelu", pre_norm, 0, 0, false);
}

}  // namespace efft
