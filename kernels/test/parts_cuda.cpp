// The engine's parts on a GPU as operators of their own, for tests only.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../torch/tensors_cuda.h"
#include "efft/cuda/attention/launch.cuh"
#include "efft/cuda/rows/add_norm.cuh"
#include "efft/cuda/rows/bias_activation.cuh"
#include "efft/cuda/rows/embed_norm.cuh"

namespace efft::cuda {

// In attention.cu.
extern EFFT_ATTENTION(float, FullScores) extern EFFT_ATTENTION(__half, FullScores) extern EFFT_ATTENTION(__nv_bfloat16,
                                                                                                         FullScores)

    namespace {
  // cu_seqlens, rows and the call itself, as unpad leaves them on the device.
  struct UnpaddedTensors {
    Tensor cu_seqlens;
    Tensor rows;
    Tensor call;
  };

  UnpaddedTensors enqueue_unpadding(const Tensor& mask, const int64_t* ids, const int64_t* segments) {
    const int64_t batch = mask.size(0), length = mask.size(1);
    UnpaddedTensors result{empty(mask, {batch + 1}, ScalarType::Int), empty(mask, {batch * length}, ScalarType::Int),
                           empty(mask, {sizeof(Call)}, ScalarType::Byte)};
    const Call call{
        ids, segments, data<const int64_t>(mask), nullptr, static_cast<int>(batch), static_cast<int>(length)};
    const Unpadded out{data<int>(result.cu_seqlens), data<int>(result.rows), nullptr, data<Call>(result.call)};
    check(cuda::unpad(call, call.batch, out, {}, current_stream(mask)), "unpad");
    return result;
  }

  std::tuple<Tensor, Tensor> unpad_op(const Tensor& mask) {
    check_type("mask", mask, ScalarType::Long);
    check_shape("mask", mask, {kAnySize, kAnySize});
    const DeviceGuard guard(mask.get_device_index());
    auto result = enqueue_unpadding(dense(mask), nullptr, nullptr);
    return {result.cu_seqlens, result.rows};
  }

  // The number of tokens sizes the result, so this one waits for the device.
  Tensor embed_norm_op(const Tensor& ids_in, const Tensor& segments_in, const Tensor& mask_in, const Tensor& word_in,
                       const Tensor& position_in, const Tensor& segment_in, const Tensor& gamma_in,
                       const Tensor& beta_in, const std::string& text) {
    const auto encoder = lowered(text);
    const EncoderSpec& spec = encoder->spec;
    const int64_t width = spec.embedding;
    check_inputs(ids_in, segments_in, mask_in);
    check_tables(word_in, position_in, segment_in, width);
    check_vector("gamma", gamma_in, width);
    check_vector("beta", beta_in, width);
    const DeviceGuard guard(ids_in.get_device_index());
    const Tensor ids = dense(ids_in), segments = dense(segments_in), mask = dense(mask_in), word = dense(word_in);
    const Tensor position = dense(position_in), segment = dense(segment_in), gamma = dense(gamma_in),
                 beta = dense(beta_in);
    const auto unpadded = enqueue_unpadding(mask, data<const int64_t>(ids), data<const int64_t>(segments));
    const int* tokens_at = data<int>(unpadded.cu_seqlens) + mask.size(0);
    const auto stream = current_stream(ids);
    int tokens = 0;
    check(cudaMemcpyAsync(&tokens, tokens_at, sizeof tokens, cudaMemcpyDeviceToHost, stream), "embed_norm");
    check(cudaStreamSynchronize(stream), "embed_norm");
    const Tensor out = empty(word, {tokens, width}, word.scalar_type());
    const bool by_ids = spec.positions == PositionCount::ids;
    const EmbeddingNorm norm{data<const float>(gamma), data<const float>(beta), static_cast<float>(spec.epsilon),
                             spec.positions, static_cast<int>(by_ids ? spec.pad : spec.offset)};
    for_type(type_of(word), [&](auto zero) {
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
            "embed_norm");
    });
    return out;
  }

  // As the CPU's: lengths that lie would make kernels read elsewhere. Waits for the device.
  void check_sequences(const Tensor& cu_seqlens, int64_t tokens, int64_t max_length) {
    check_type("cu_seqlens", cu_seqlens, ScalarType::Int);
    check_shape("cu_seqlens", cu_seqlens, {kAnySize});
    const int64_t batch = cu_seqlens.size(0) - 1;
    STD_TORCH_CHECK(batch >= 0, "cu_seqlens: must start with 0");
    std::vector<int> ends(batch + 1);
    const auto stream = current_stream(cu_seqlens);
    check(cudaMemcpyAsync(ends.data(), cu_seqlens.data_ptr(), 4 * ends.size(), cudaMemcpyDeviceToHost, stream),
          "cu_seqlens");
    check(cudaStreamSynchronize(stream), "cu_seqlens");
    STD_TORCH_CHECK(ends[0] == 0, "cu_seqlens: must start with 0");
    for (int64_t b = 0; b < batch; ++b) {
      const int64_t length = int64_t{ends[b + 1]} - ends[b];
      STD_TORCH_CHECK(length >= 0 && length <= max_length, "cu_seqlens: sequence ", b, " has ", length,
                      " tokens, max_length is ", max_length);
    }
    STD_TORCH_CHECK(ends[batch] == tokens, "cu_seqlens: ends at ", ends[batch], ", qkv has ", tokens, " rows");
  }

  template <typename ScoreOf>
  Tensor attend(const Tensor& qkv_in, const Tensor& bias_in, const Tensor& cu_seqlens_in, int64_t heads,
                int64_t max_length, const ScoreOf& score) {
    check_float_type("qkv", qkv_in);
    check_shape("qkv", qkv_in, {kAnySize, kAnySize});
    const int64_t tokens = qkv_in.size(0), width = qkv_in.size(1), hidden = width / 3;
    STD_TORCH_CHECK(width % 3 == 0, "qkv: the width must be three times the hidden size, got ", width);
    STD_TORCH_CHECK(heads >= 1 && hidden % heads == 0, "heads: ", heads, " do not divide hidden ", hidden);
    const int64_t size = hidden / heads;
    STD_TORCH_CHECK(size % 2 == 0 && size >= 2 && size <= 128,
                    "heads: the head size must be even and at most 128, got ", size);
    check_vector("bias", bias_in, width);
    const DeviceGuard guard(qkv_in.get_device_index());
    const Tensor qkv = dense(qkv_in), bias = dense(bias_in), cu_seqlens = dense(cu_seqlens_in);
    check_device("cu_seqlens", cu_seqlens, "qkv", qkv);
    check_sequences(cu_seqlens, tokens, max_length);
    const Tensor out = empty(qkv, {tokens, hidden}, qkv.scalar_type());
    if (tokens == 0 || cu_seqlens.size(0) == 1) return out;
    for_type(type_of(qkv), [&](auto zero) {
      using T = decltype(zero);
      const AttentionArguments<T, ScoreOf> a{data<const T>(qkv),
                                             data<const float>(bias),
                                             data<const float>(bias) + 2 * hidden,
                                             data<const int>(cu_seqlens),
                                             data<T>(out),
                                             static_cast<int>(cu_seqlens.size(0) - 1),
                                             static_cast<int>(heads),
                                             static_cast<int>(heads),
                                             static_cast<int>(size),
                                             static_cast<float>(1 / std::sqrt(static_cast<double>(size))),
                                             score};
      check(attention(a, static_cast<int>(max_length), static_cast<int>(tokens), current_stream(qkv), Order::kSerial),
            "attention");
    });
    return out;
  }

  Tensor attention_op(const Tensor& qkv, const Tensor& bias, const Tensor& cu_seqlens, int64_t heads,
                      int64_t max_length) {
    return attend(qkv, bias, cu_seqlens, heads, max_length, FullScores{});
  }

  // A window of keys around each row and a penalty that grows with the distance: holds every kernel to what score.cuh
  // promises to policies that are yet to come.
  struct ProbeScores {
    static constexpr bool kNarrows = true;
    static constexpr bool kAdds = true;
    int reach;    // keys to either side
    float slope;  // per key of distance, times head + 1; over the scale

    __device__ __forceinline__ KeyRange keys(int length, int row) const {
      return {max(min(row, length - 1) - reach, 0), min(row + reach + 1, length)};
    }
    __device__ __forceinline__ float added(int head, int distance) const {
      return -slope * static_cast<float>(head + 1) * static_cast<float>(abs(distance));
    }
  };

  Tensor window_attention_op(const Tensor& qkv, const Tensor& bias, const Tensor& cu_seqlens, int64_t heads,
                             int64_t max_length, int64_t reach, double slope) {
    const double size = static_cast<double>(qkv.size(1)) / 3 / static_cast<double>(heads);
    return attend(qkv, bias, cu_seqlens, heads, max_length,
                  ProbeScores{static_cast<int>(reach), static_cast<float>(slope * std::sqrt(size))});
  }

  Tensor add_norm_op(const Tensor& x_in, const Tensor& bias_in, const Tensor& residual_in, const Tensor& gamma_in,
                     const Tensor& beta_in, double epsilon, bool overlap) {
    check_float_type("x", x_in);
    check_shape("x", x_in, {kAnySize, kAnySize});
    const int64_t tokens = x_in.size(0), width = x_in.size(1);
    check_type("residual", residual_in, x_in.scalar_type());
    check_shape("residual", residual_in, {tokens, width});
    check_vector("bias", bias_in, width);
    check_vector("gamma", gamma_in, width);
    check_vector("beta", beta_in, width);
    const DeviceGuard guard(x_in.get_device_index());
    const Tensor x = dense(x_in), bias = dense(bias_in), residual = dense(residual_in), gamma = dense(gamma_in),
                 beta = dense(beta_in);
    const Tensor out = torch::stable::empty_like(x);
    for_type(type_of(x), [&](auto zero) {
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
      check(add_norm(step, nullptr, static_cast<int>(tokens), static_cast<int>(width), current_stream(x), order),
            "add_norm");
    });
    return out;
  }

  Tensor bias_activation_op(const Tensor& x_in, const Tensor& bias_in, const std::string& activation) {
    check_float_type("x", x_in);
    check_shape("x", x_in, {kAnySize, kAnySize});
    check_vector("bias", bias_in, x_in.size(1));
    const DeviceGuard guard(x_in.get_device_index());
    const Tensor x = dense(x_in), bias = dense(bias_in);
    const Tensor out = torch::stable::empty_like(x);
    const Pointwise kind = pointwise(activation_of(activation));
    for_type(type_of(x), [&](auto zero) {
      using T = decltype(zero);
      check(bias_activation(data<const T>(x), data<const float>(bias), kind, data<T>(out), nullptr,
                            static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), current_stream(x)),
            "bias_activation");
    });
    return out;
  }

}  // namespace
}  // namespace efft::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(efft_test, m) {
  // As attention, each row seeing `reach` keys to either side, less slope * (head + 1) for each key of distance.
  m.def(
      "packed_window_attention(Tensor qkv, Tensor bias, Tensor cu_seqlens, int heads, int max_length, int reach, "
      "float slope) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(efft_test, CUDA, m) {
  m.impl("unpad", TORCH_BOX(&efft::cuda::unpad_op));
  m.impl("embed_norm", TORCH_BOX(&efft::cuda::embed_norm_op));
  m.impl("attention", TORCH_BOX(&efft::cuda::attention_op));
  m.impl("packed_window_attention", TORCH_BOX(&efft::cuda::window_attention_op));
  m.impl("add_norm", TORCH_BOX(&efft::cuda::add_norm_op));
  m.impl("bias_activation", TORCH_BOX(&efft::cuda::bias_activation_op));
}
