// The encoder's operators on the CPU: check, pick the types, call the engine.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "checks.h"
#include "efft/cpu/workspace.h"
#include "efft/quantised.h"
#include "tensors_cpu.h"

namespace efft {

namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

// Plain matrices, or the bytes of the archived 8-bit form.
std::vector<WeightView> matrices_of(const Tensor& matrices, const Lowered& encoder) {
  if (matrices.scalar_type() == ScalarType::Byte) {
    const void* const bytes = matrices.data_ptr();
    return quantised_matrices(encoder, bytes, bytes, matrices.numel());
  }
  check_matrices(matrices, encoder);
  return cpu::plain_matrices(encoder.slots, matrices.data_ptr(), type_of(matrices));
}

// Whether the bytes can only be what prepare_weights made.
bool is_prepared(const Tensor& matrices) {
  return matrices.scalar_type() == ScalarType::Byte && !is_quantised(matrices.data_ptr(), matrices.numel());
}

// Matrices in the engine's own form. Any other is packed anew for every call, into `packed`: correct, slow, and meant
// for tests and tracing; who serves a model prepares it once.
cpu::Prepared prepared_of(const Tensor& matrices, const Lowered& encoder, cpu::Workspace& packed) {
  if (is_prepared(matrices)) return cpu::Prepared::checked(matrices.data_ptr(), matrices.numel(), encoder.slots);
  const Tensor plain = contiguous(matrices);
  const auto views = matrices_of(plain, encoder);
  char* block = packed.reserve(cpu::prepared_bytes(encoder.slots, views));
  cpu::prepare(encoder.slots, views, block, threads());
  return cpu::Prepared(block);
}

Tensor prepared(const Tensor& matrices, const Lowered& encoder) {
  const Tensor plain = contiguous(matrices);
  const auto views = matrices_of(plain, encoder);
  Tensor out = new_empty(matrices, {cpu::prepared_bytes(encoder.slots, views)}, ScalarType::Byte);
  cpu::prepare(encoder.slots, views, out.data_ptr(), threads());
  return out;
}

Tensor run(const Tensor& ids, const Tensor& segments, const Tensor& mask, const Weights& weights,
           const Lowered& encoder, const std::string& output) {
  const Output wanted = output_of(output);
  check_call(ids, segments, mask, weights, encoder);
  const InputSizes sizes = sizes_of(ids, mask);
  const Tensor i = contiguous(ids), s = contiguous(segments), m = sizes.packed ? mask : contiguous(mask);
  const Tensor word = contiguous(weights.word), position = contiguous(weights.position);
  const Tensor segment = contiguous(weights.segment), vectors = contiguous(weights.vectors);
  cpu::Workspace packed;
  const cpu::Prepared matrices = prepared_of(weights.matrices, encoder, packed);
  Tensor out = new_empty(word, result_sizes(sizes, encoder.spec, wanted));
  cpu::encode({encoder, batch_of(i, s, m, sizes), tables_of(encoder.spec, word, position, segment), matrices,
               floats(vectors), wanted, out.data_ptr(), type_of(word), threads()});
  return out;
}

Tensor encode(const Tensor& ids, const Tensor& segments, const Tensor& mask, const std::vector<Tensor>& weights,
              const std::string& spec, const std::string& output) {
  return run(ids, segments, mask, weights_of(weights), *lowered(spec), output);
}

// The tables and the vectors stay as they are.
std::vector<Tensor> prepare_weights(std::vector<Tensor> tensors, const std::string& spec) {
  const auto encoder = lowered(spec);
  const Weights weights = weights_of(tensors);
  check_weights(weights, *encoder);
  if (is_prepared(weights.matrices)) {
    cpu::Prepared::checked(weights.matrices.data_ptr(), weights.matrices.numel(), encoder->slots);
  } else {
    tensors[kMatrices] = prepared(weights.matrices, *encoder);
  }
  return tensors;
}

Tensor encoder_0_1(const Tensor& ids, const Tensor& segments, const Tensor& mask, const Tensor& word,
                   const Tensor& position, const Tensor& segment, const Tensor& matrices, const Tensor& vectors,
                   int64_t layers, int64_t hidden, int64_t heads, int64_t intermediate, const std::string& activation,
                   bool pre_norm, double epsilon, int64_t position_offset, bool count_positions,
                   const std::string& output) {
  check_shape("word", word, {kAnySize, kAnySize});
  const auto encoder = lowered(spec_of(layers, hidden, word.size(1), heads, intermediate, activation, pre_norm, epsilon,
                                       position_offset, count_positions));
  return run(ids, segments, mask, {word, position, segment, matrices, vectors}, *encoder, output);
}

Tensor prepare_0_1(const Tensor& matrices, int64_t layers, int64_t hidden, int64_t embedding, int64_t intermediate,
                   std::optional<Tensor> /*vectors*/) {
  return prepared(matrices, *lowered(spec_of(layers, hidden, embedding, intermediate, false)));
}

std::string slots_text(const std::string& spec) { return text(lowered(spec)->slots); }

std::string describe() {
  const cpu::Kernels& k = cpu::kernels();
  return std::string("device=cpu isa=") + k.name + " bf16=" + (k.native_bf16() ? "native" : "widened") +
         " int8=" + (k.s8.rows ? "native" : "none");
}

}  // namespace

}  // namespace efft

STABLE_TORCH_LIBRARY_IMPL(efft, CPU, m) {
  m.impl("encode", TORCH_BOX(&efft::encode));
  m.impl("prepare_weights", TORCH_BOX(&efft::prepare_weights));
  m.impl("encoder", TORCH_BOX(&efft::encoder_0_1));
  m.impl("prepare", TORCH_BOX(&efft::prepare_0_1));
}

// They take no tensor, so no device's key would ever be chosen.
STABLE_TORCH_LIBRARY_IMPL(efft, CompositeExplicitAutograd, m) {
  m.impl("slots", TORCH_BOX(&efft::slots_text));
  m.impl("describe", TORCH_BOX(&efft::describe));
}
