// The engine's parts as operators of their own, for tests only.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "../torch/tensors_cpu.h"
#include "efft/cpu/parallel.h"
#include "efft/cpu/workspace.h"

namespace efft {

namespace {

using torch::stable::contiguous;
using torch::stable::new_empty;

char* row_of(const Tensor& tensor, int64_t row) {
  return static_cast<char*>(tensor.data_ptr()) + row * tensor.size(1) * static_cast<int64_t>(tensor.element_size());
}

std::tuple<Tensor, Tensor> unpad(const Tensor& mask) {
  check_type("mask", mask, ScalarType::Long);
  check_shape("mask", mask, {kAnySize, kAnySize});
  const Tensor m = contiguous(mask);
  const int64_t batch = mask.size(0), length = mask.size(1);
  Tensor cu_seqlens = new_empty(mask, {batch + 1}, ScalarType::Int);
  Tensor rows = new_empty(mask, {batch * length}, ScalarType::Int);
  auto* indices = static_cast<int32_t*>(rows.data_ptr());
  const cpu::Tokens tokens =
      cpu::unpad(integers(m), batch, length, static_cast<int32_t*>(cu_seqlens.data_ptr()), indices);
  std::fill(indices + tokens.count, indices + batch * length, -1);
  return {cu_seqlens, rows};
}

Tensor embed_norm(const Tensor& ids, const Tensor& segments, const Tensor& mask, const Tensor& word,
                  const Tensor& position, const Tensor& segment, const Tensor& gamma, const Tensor& beta,
                  const std::string& text) {
  const auto encoder = lowered(text);
  check_inputs(ids, segments, mask);
  check_tables(word, position, segment, encoder->spec.embedding);
  const int64_t width = word.size(1), batch = ids.size(0), length = ids.size(1);
  check_vector("gamma", gamma, width);
  check_vector("beta", beta, width);
  const Tensor i = contiguous(ids), s = contiguous(segments), m = contiguous(mask);
  const Tensor w = contiguous(word), p = contiguous(position), g = contiguous(segment);
  const Tensor scale = contiguous(gamma), shift = contiguous(beta);

  std::vector<int32_t> memory(batch + 1 + 2 * batch * length);
  int32_t *rows = memory.data() + batch + 1, *positions = rows + batch * length;
  const cpu::Tokens tokens = cpu::unpad(integers(m), batch, length, memory.data(), rows);
  const cpu::Batch inputs{integers(i), integers(s), integers(m), batch, length};
  cpu::positions_of(encoder->spec, inputs, tokens, positions);
  const cpu::Tables tables = tables_of(encoder->spec, w, p, g);
  cpu::check_indices(inputs, tables, tokens, positions);

  Tensor out = new_empty(word, {tokens.count, width});
  const cpu::Norm norm{floats(scale), floats(shift), width, static_cast<float>(encoder->spec.epsilon), false};
  const cpu::Kernels& k = cpu::kernels();
  const int team = threads();
  const int64_t stride = (width + 15) / 16 * 16;
  cpu::ThreadWorkspace workspace;
  auto* sums = reinterpret_cast<float*>(workspace.reserve(team * stride * sizeof(float)));
  cpu::Team::run(team, 3, [&](cpu::Member& member) {
    const int thread = member.thread();
    cpu::Results to{};
    to.values = sums + thread * stride;
    member.phase(tokens.count, [&](int64_t t) {
      const int64_t at = tokens.rows[t];
      k.embed(tables.rows, {integers(i)[at], positions[t], integers(s)[at], 1.0f}, norm, to);
      k.cast(to.values, Type::f32, row_of(out, t), type_of(out), width);
    });
  });
  return out;
}

void check_sequences(const Tensor& cu_seqlens, int64_t tokens, int64_t max_length) {
  check_type("cu_seqlens", cu_seqlens, ScalarType::Int);
  check_shape("cu_seqlens", cu_seqlens, {kAnySize});
  const auto* ends = static_cast<const int32_t*>(cu_seqlens.data_ptr());
  const int64_t batch = cu_seqlens.size(0) - 1;
  STD_TORCH_CHECK(batch >= 0 && ends[0] == 0, "cu_seqlens: must start with 0");
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t length = int64_t{ends[b + 1]} - ends[b];
    STD_TORCH_CHECK(length >= 0 && length <= max_length, "cu_seqlens: sequence ", b, " has ", length,
                    " tokens, max_length is ", max_length);
  }
  STD_TORCH_CHECK(ends[batch] == tokens, "cu_seqlens: ends at ", ends[batch], ", qkv has ", tokens, " rows");
}

Tensor attention(const Tensor& qkv, const Tensor& bias, const Tensor& cu_seqlens, int64_t heads, int64_t max_length) {
  check_float_type("qkv", qkv);
  check_shape("qkv", qkv, {kAnySize, kAnySize});
  const int64_t tokens = qkv.size(0), width = qkv.size(1), hidden = width / 3;
  STD_TORCH_CHECK(width % 3 == 0, "qkv: the width must be three times the hidden size, got ", width);
  STD_TORCH_CHECK(heads >= 1 && hidden % heads == 0, "heads: ", heads, " do not divide hidden ", hidden);
  const int64_t size = hidden / heads;
  STD_TORCH_CHECK(size % 2 == 0 && size >= 2 && size <= 128, "heads: the head size must be even and at most 128, got ",
                  size);
  check_vector("bias", bias, width);
  const Tensor ends = contiguous(cu_seqlens);
  check_sequences(ends, tokens, max_length);

  const cpu::Kernels& k = cpu::kernels();
  const Type type = type_of(qkv);
  const Type compute = type == Type::bf16 && k.native_bf16() ? type : Type::f32;
  const int64_t element = compute == Type::f32 ? 4 : 2;
  const Tensor source = contiguous(qkv), added = contiguous(bias);
  Tensor out = new_empty(qkv, {tokens, hidden});
  const int team = threads();
  const int64_t batch = ends.size(0) - 1;
  const auto* starts = static_cast<const int32_t*>(ends.data_ptr());
  int64_t longest = 0;
  for (int64_t b = 0; b < batch; ++b) longest = std::max<int64_t>(longest, starts[b + 1] - starts[b]);

  cpu::Carver carver;
  const int64_t biased_at = carver.take((tokens * width + 16) * element);
  const int64_t context_at = carver.take(tokens * hidden * element);
  const int64_t row_at = carver.take(team * width * 4);
  const int64_t scratch_bytes = (k.attend_scratch(longest, size, 0) + 63) / 64 * 64;
  const int64_t scratch_at = carver.take(team * scratch_bytes);
  cpu::ThreadWorkspace workspace;
  char* base = workspace.reserve(carver.used());
  char *biased = base + biased_at, *context = base + context_at;
  cpu::Team::run(team, 3, [&](cpu::Member& member) {
    const int thread = member.thread();
    auto* row = reinterpret_cast<float*>(base + row_at) + thread * width;
    member.phase(tokens, [&](int64_t t) {
      k.cast(row_of(source, t), type, row, Type::f32, width);
      k.bias_step(row, Type::f32, floats(added), cpu::Pointwise::none, width, row);
      k.cast(row, Type::f32, biased + t * width * element, compute, width);
    });
    member.phase(batch * heads, [&](int64_t task) {
      const int64_t begin = starts[task / heads], length = starts[task / heads + 1] - begin, head = task % heads;
      if (length == 0) return;
      const char* query = biased + (begin * width + head * size) * element;
      const cpu::Attend a{query,
                          width,
                          query + hidden * element,
                          query + 2 * hidden * element,
                          width,
                          context + (begin * hidden + head * size) * element,
                          hidden,
                          length,
                          length,
                          size,
                          1.0f / std::sqrt(static_cast<float>(size))};
      (compute == Type::bf16 ? k.attend_bf16 : k.attend_f32)[0](a, base + scratch_at + thread * scratch_bytes);
    });
    member.phase(tokens,
                 [&](int64_t t) { k.cast(context + t * hidden * element, compute, row_of(out, t), type, hidden); });
  });
  return out;
}

Tensor add_norm(const Tensor& x, const Tensor& bias, const Tensor& residual, const Tensor& gamma, const Tensor& beta,
                double epsilon, bool /*overlap*/) {
  check_float_type("x", x);
  check_shape("x", x, {kAnySize, kAnySize});
  const int64_t rows = x.size(0), width = x.size(1);
  check_type("residual", residual, x.scalar_type());
  check_shape("residual", residual, {rows, width});
  check_vector("bias", bias, width);
  check_vector("gamma", gamma, width);
  check_vector("beta", beta, width);
  const Tensor source = contiguous(x), other = contiguous(residual);
  const Tensor shift = contiguous(bias), scale = contiguous(gamma), offset = contiguous(beta);
  Tensor out = new_empty(x, {rows, width});
  const cpu::Norm norm{floats(scale), floats(offset), width, static_cast<float>(epsilon), false};
  const cpu::Kernels& k = cpu::kernels();
  const Type type = type_of(x);
  const int team = threads();
  cpu::ThreadWorkspace workspace;
  auto* memory = reinterpret_cast<float*>(workspace.reserve(team * 2 * width * sizeof(float)));
  cpu::Team::run(team, 3, [&](cpu::Member& member) {
    const int thread = member.thread();
    float *sum = memory + thread * 2 * width, *addend = sum + width;
    member.phase(rows, [&](int64_t t) {
      k.cast(row_of(source, t), type, sum, Type::f32, width);
      k.cast(row_of(other, t), type, addend, Type::f32, width);
      k.bias_step(sum, Type::f32, floats(shift), cpu::Pointwise::none, width, sum);
      k.bias_step(sum, Type::f32, addend, cpu::Pointwise::none, width, sum);
      cpu::Results to{};
      to.values = sum;
      k.normalize(sum, norm, to);
      k.cast(sum, Type::f32, row_of(out, t), type, width);
    });
  });
  return out;
}

Tensor bias_activation(const Tensor& x, const Tensor& bias, const std::string& activation) {
  check_float_type("x", x);
  check_shape("x", x, {kAnySize, kAnySize});
  check_vector("bias", bias, x.size(1));
  const cpu::Pointwise step = cpu::pointwise(activation_of(activation));
  const Tensor source = contiguous(x), added = contiguous(bias);
  Tensor out = new_empty(x, {x.size(0), x.size(1)});
  cpu::Team::run(threads(), 1, [&](cpu::Member& member) {
    member.phase(x.size(0), [&](int64_t t) {
      cpu::kernels().bias_step(row_of(source, t), type_of(x), floats(added), step, x.size(1), row_of(out, t));
    });
  });
  return out;
}

int64_t workspaces(double seconds) {
  cpu::ThreadWorkspace::trim(seconds);
  return static_cast<int64_t>(cpu::ThreadWorkspace::held());
}

std::string canonical(const std::string& spec) { return text(parse(spec)); }

std::vector<int64_t> buckets(const std::string& text, int64_t farthest) {
  const EncoderSpec spec = parse(text);
  std::vector<int64_t> all;
  for (int64_t distance = -farthest; distance <= farthest; ++distance) all.push_back(bucket_of(spec, distance));
  return all;
}

const Program& program_of(const Lowered& encoder, const std::string& rewrite) {
  if (rewrite == "first_rows") return encoder.first_rows;
  return rewrite == "folded" ? encoder.folded : encoder.program;
}

std::string program(const std::string& spec, const std::string& rewrite) {
  const auto encoder = lowered(spec);
  return text(program_of(*encoder, rewrite), encoder->slots);
}

std::vector<int64_t> places(const std::string& spec, const std::string& rewrite, bool shared) {
  const auto encoder = lowered(spec);
  const Program& p = program_of(*encoder, rewrite);
  Placement placement = place(p, [&p](int value) { return p.values[value].width; }, {shared, shared}, 1);
  placement.at.push_back(placement.bytes);
  return placement.at;
}

}  // namespace

}  // namespace efft

STABLE_TORCH_LIBRARY_IMPL(efft_test, CPU, m) {
  m.impl("unpad", TORCH_BOX(&efft::unpad));
  m.impl("embed_norm", TORCH_BOX(&efft::embed_norm));
  m.impl("attention", TORCH_BOX(&efft::attention));
  m.impl("add_norm", TORCH_BOX(&efft::add_norm));
  m.impl("bias_activation", TORCH_BOX(&efft::bias_activation));
}

// They take no tensor, so no device's key would ever be chosen.
STABLE_TORCH_LIBRARY_IMPL(efft_test, CompositeExplicitAutograd, m) {
  m.impl("workspaces", TORCH_BOX(&efft::workspaces));
  m.impl("canonical", TORCH_BOX(&efft::canonical));
  m.impl("buckets", TORCH_BOX(&efft::buckets));
  m.impl("program", TORCH_BOX(&efft::program));
  m.impl("places", TORCH_BOX(&efft::places));
}
