// The encoder's steps as operators of their own, for CUDA tensors.
#include <torch/csrc/stable/library.h>

#include <climits>
#include <tuple>

#include "../cuda/engine/engine.h"
#include "efft/cuda/rows/add_norm.cuh"
#include "efft/cuda/attention/attention.cuh"
#include "efft/cuda/rows/bias_activation.cuh"
#include "efft/cuda/rows/embed_norm.cuh"
#include "efft/cuda/rows/unpad.cuh"
#include "tensors_cuda.h"

namespace efft::cuda {
namespace {

using torch::stable::accelerator::DeviceGuard;

// cu_seqlens, rows and the call itself, as unpad leaves them on the device.
struct UnpaddedTensors {
  Tensor cu_seqlens;
  Tensor rows;
  Tensor call;
};

UnpaddedTensors enqueue_unpadding(const Tensor& mask_in, const int64_t* ids, const int64_t* segments,
                                  const char* name) {
  require(mask_in.dim() == 2, name, "mask must be [batch, length]");
  const int64_t batch = mask_in.size(0), length = mask_in.size(1);
  require(batch * length <= INT_MAX, name, "batch times length must fit 31 bits");
  const auto mask = checked(mask_in, ScalarType::Long, {batch, length}, name, "mask");
  UnpaddedTensors result{empty(mask, {batch + 1}, ScalarType::Int), empty(mask, {batch * length}, ScalarType::Int),
                         empty(mask, {sizeof(Call)}, ScalarType::Byte)};
  const Call call{ids, segments, data<const int64_t>(mask), nullptr, static_cast<int>(batch), static_cast<int>(length)};
  const Unpadded out{data<int>(result.cu_seqlens), data<int>(result.rows), nullptr, data<Call>(result.call)};
  check(cuda::unpad(call, call.batch, out, {}, current_stream(mask)), name);
  return result;
}

std::tuple<Tensor, Tensor> unpad_op(const Tensor& mask) {
  const DeviceGuard guard(mask.get_device_index());
  auto result = enqueue_unpadding(mask, nullptr, nullptr, "unpad");
  return {result.cu_seqlens, result.rows};
}

// The number of tokens sizes the result, so this one waits for the device.
Tensor embed_norm_op(const Tensor& ids_in, const Tensor& segments_in, const Tensor& mask_in, const Tensor& word_in,
                     const Tensor& position_in, const Tensor& segment_in, const Tensor& gamma_in, const Tensor& beta_in,
                     double epsilon, int64_t position_offset, bool count_positions) {
  constexpr const char* kName = "embed_norm";
  require(ids_in.dim() == 2 && word_in.dim() == 2, kName, "ids and word must have two dimensions");
  const DeviceGuard guard(ids_in.get_device_index());
  const int64_t batch = ids_in.size(0), length = ids_in.size(1), width = word_in.size(1);
  const auto ids = checked(ids_in, ScalarType::Long, {batch, length}, kName, "ids");
  const auto segments = checked(segments_in, ScalarType::Long, {batch, length}, kName, "segments");
  const auto mask = checked(mask_in, ScalarType::Long, {batch, length}, kName, "mask");
  const auto type = word_in.scalar_type();
  const auto word = checked(word_in, type, {-1, width}, kName, "word");
  const auto position = checked(position_in, type, {-1, width}, kName, "position");
  const auto segment = checked(segment_in, type, {-1, width}, kName, "segment");
  const auto gamma = checked(gamma_in, ScalarType::Float, {width}, kName, "gamma");
  const auto beta = checked(beta_in, ScalarType::Float, {width}, kName, "beta");
  const auto unpadded = enqueue_unpadding(mask, data<const int64_t>(ids), data<const int64_t>(segments), kName);
  const int* tokens_at = data<int>(unpadded.cu_seqlens) + batch;
  const auto stream = current_stream(ids);
  int tokens = 0;
  check(cudaMemcpyAsync(&tokens, tokens_at, sizeof tokens, cudaMemcpyDeviceToHost, stream), kName);
  check(cudaStreamSynchronize(stream), kName);
  const auto out = empty(word, {tokens, width}, type);
  const EmbeddingNorm norm{data<const float>(gamma), data<const float>(beta), static_cast<float>(epsilon),
                           static_cast<int>(position_offset), count_positions};
  for_type(data_type(word, kName, "word"), [&](auto zero) {
    using T = decltype(zero);
    const EmbeddingTables<T> tables{data<const T>(word),
                                    data<const T>(position),
                                    data<const T>(segment),
                                    static_cast<int>(word.size(0)),
                                    static_cast<int>(position.size(0)),
                                    static_cast<int>(segment.size(0))};
    check(embed_norm(data<const Call>(unpadded.call), data<const int>(unpadded.cu_seqlens),
                     data<const int>(unpadded.rows), tokens_at, tables, norm, data<T>(out), tokens,
                     static_cast<int>(width), stream),
          kName);
  });
  return out;
}

Tensor attention_op(const Tensor& qkv_in, const Tensor& bias_in, const Tensor& cu_seqlens_in, int64_t heads,
                    int64_t max_length) {
  constexpr const char* kName = "attention";
  require(qkv_in.dim() == 2 && heads > 0 && qkv_in.size(1) % (3 * heads) == 0, kName,
          "qkv must be [tokens, 3 * heads * head size]");
  const DeviceGuard guard(qkv_in.get_device_index());
  const int64_t tokens = qkv_in.size(0), hidden = qkv_in.size(1) / 3, head_size = hidden / heads;
  require(head_size % 2 == 0 && head_size <= 128, kName, "head size must be even and at most 128");
  const auto qkv = checked(qkv_in, qkv_in.scalar_type(), {tokens, 3 * hidden}, kName, "qkv");
  const auto bias = checked(bias_in, ScalarType::Float, {3 * hidden}, kName, "bias");
  const auto cu_seqlens = checked(cu_seqlens_in, ScalarType::Int, {-1}, kName, "cu_seqlens");
  require(cu_seqlens.size(0) >= 1, kName, "cu_seqlens must have at least one element");
  require(max_length >= 0, kName, "max_length must not be negative");
  const auto out = empty(qkv, {tokens, hidden}, qkv.scalar_type());
  if (tokens == 0 || cu_seqlens.size(0) == 1) return out;
  for_type(data_type(qkv, kName, "qkv"), [&](auto zero) {
    using T = decltype(zero);
    check(attention(data<const T>(qkv), data<const float>(bias), data<const int>(cu_seqlens), data<T>(out),
                    static_cast<int>(cu_seqlens.size(0) - 1), static_cast<int>(heads), static_cast<int>(head_size),
                    static_cast<int>(max_length), static_cast<int>(tokens), current_stream(qkv)),
          kName);
  });
  return out;
}

Tensor add_norm_op(const Tensor& x_in, const Tensor& bias_in, const Tensor& residual_in, const Tensor& gamma_in,
                   const Tensor& beta_in, double epsilon, bool overlap) {
  constexpr const char* kName = "add_norm";
  require(x_in.dim() == 2, kName, "x must be [tokens, width]");
  const DeviceGuard guard(x_in.get_device_index());
  const int64_t tokens = x_in.size(0), width = x_in.size(1);
  const auto x = checked(x_in, x_in.scalar_type(), {tokens, width}, kName, "x");
  const auto bias = checked(bias_in, ScalarType::Float, {width}, kName, "bias");
  const auto residual = checked(residual_in, x.scalar_type(), {tokens, width}, kName, "residual");
  const auto gamma = checked(gamma_in, ScalarType::Float, {width}, kName, "gamma");
  const auto beta = checked(beta_in, ScalarType::Float, {width}, kName, "beta");
  const auto out = torch::stable::empty_like(x);
  for_type(data_type(x, kName, "x"), [&](auto zero) {
    using T = decltype(zero);
    const AddNorm<T> step{data<const T>(x),
                          data<const float>(bias),
                          data<const T>(residual),
                          data<const float>(gamma),
                          data<const float>(beta),
                          static_cast<float>(epsilon),
                          data<T>(out),
                          nullptr};
    const Order order = overlap ? Order::kOverlap : Order::kSerial;
    check(add_norm(step, nullptr, static_cast<int>(tokens), static_cast<int>(width), current_stream(x), order), kName);
  });
  return out;
}

Tensor bias_activation_op(const Tensor& x_in, const Tensor& bias_in, std::string activation) {
  constexpr const char* kName = "bias_activation";
  require(x_in.dim() == 2, kName, "x must be [tokens, width]");
  const DeviceGuard guard(x_in.get_device_index());
  const int64_t tokens = x_in.size(0), width = x_in.size(1);
  const auto x = checked(x_in, x_in.scalar_type(), {tokens, width}, kName, "x");
  const auto bias = checked(bias_in, ScalarType::Float, {width}, kName, "bias");
  const auto out = torch::stable::empty_like(x);
  const Pointwise kind = pointwise(parse_activation(activation, kName));
  for_type(data_type(x, kName, "x"), [&](auto zero) {
    using T = decltype(zero);
    check(bias_activation(data<const T>(x), data<const float>(bias), kind, data<T>(out), nullptr,
                          static_cast<int>(tokens), static_cast<int>(width), current_stream(x)),
          kName);
  });
  return out;
}

}  // namespace
}  // namespace efft::cuda

STABLE_TORCH_LIBRARY_IMPL(efft, CUDA, m) {
  m.impl("unpad", TORCH_BOX(&efft::cuda::unpad_op));
  m.impl("embed_norm", TORCH_BOX(&efft::cuda::embed_norm_op));
  m.impl("attention", TORCH_BOX(&efft::cuda::attention_op));
  m.impl("add_norm", TORCH_BOX(&efft::cuda::add_norm_op));
  m.impl("bias_activation", TORCH_BOX(&efft::cuda::bias_activation_op));
}
