// Argument checks that every device's binding makes. Each failure names the argument.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <string>

#include "efft/encoder.h"

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

inline Activation activation_of(const std::string& name) {
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  STD_TORCH_CHECK(name == "relu", "activation: expected gelu, gelu_tanh or relu, got '", name, "'");
  return Activation::relu;
}

inline Output output_of(const std::string& name) {
  if (name == "hidden") return Output::hidden;
  if (name == "first") return Output::first;
  STD_TORCH_CHECK(name == "mean", "output: expected hidden, first or mean, got '", name, "'");
  return Output::mean;
}

inline void check_encoder_shape(const EncoderShape& s) {
  STD_TORCH_CHECK(s.layers >= 1, "layers: expected at least 1, got ", s.layers);
  STD_TORCH_CHECK(s.hidden >= 1 && s.embedding >= 1, "hidden: expected at least 1, got ", s.hidden);
  STD_TORCH_CHECK(s.intermediate >= 1, "intermediate: expected at least 1, got ", s.intermediate);
  STD_TORCH_CHECK(s.heads >= 1 && s.hidden % s.heads == 0, "heads: ", s.heads, " do not divide hidden ", s.hidden);
  STD_TORCH_CHECK(s.head_size() % 2 == 0 && s.head_size() <= 128,
                  "heads: the head size must be even and at most 128, got ", s.head_size());
  STD_TORCH_CHECK(s.epsilon >= 0, "epsilon: must not be negative");
  STD_TORCH_CHECK(s.position_offset >= 0, "position_offset: must not be negative, got ", s.position_offset);
}

// ids, segments and mask: int64, one common shape [B, S].
inline void check_inputs(const Tensor& ids, const Tensor& segments, const Tensor& mask) {
  check_type("ids", ids, ScalarType::Long);
  check_type("segments", segments, ScalarType::Long);
  check_type("mask", mask, ScalarType::Long);
  check_shape("ids", ids, {kAnySize, kAnySize});
  check_shape("segments", segments, {ids.size(0), ids.size(1)});
  check_shape("mask", mask, {ids.size(0), ids.size(1)});
  STD_TORCH_CHECK(ids.size(0) * ids.size(1) < (int64_t{1} << 31), "ids: more than 2^31 tokens in one batch");
}

// word, position, segment: one float type, one width.
inline void check_tables(const Tensor& word, const Tensor& position, const Tensor& segment) {
  check_float_type("word", word);
  check_type("position", position, word.scalar_type());
  check_type("segment", segment, word.scalar_type());
  check_shape("word", word, {kAnySize, kAnySize});
  check_shape("position", position, {kAnySize, word.size(1)});
  check_shape("segment", segment, {kAnySize, word.size(1)});
}

}  // namespace efft
