// The whole encoder for CUDA tensors: checks the arguments and hands raw pointers to the engine.
#include <cublas_v2.h>
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <climits>
#include <memory>
#include <optional>
#include <type_traits>

#include "../cuda/engine/lanes.h"
#include "efft/cuda/linear/small.cuh"
#include "tensors_cuda.h"

namespace efft::cuda {
namespace {

constexpr const char* kName = "encoder";

Output parse_output(const std::string& text) {
  if (text == "hidden") return Output::hidden;
  if (text == "first") return Output::first;
  require(text == "mean", kName, "output must be hidden, first or mean, not " + text);
  return Output::mean;
}

// torch.backends.cuda.matmul.allow_tf32: torch sets its cuBLAS handle's math mode by it whenever the handle is taken.
bool torch_allows_tf32() {
  using GetMathMode = decltype(&cublasGetMathMode);
  static const auto get_math_mode = [] {
    void* library = dlopen("libcublas.so.13", RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) library = dlopen("libcublas.so.12", RTLD_NOW | RTLD_LOCAL);
    return library == nullptr ? nullptr : reinterpret_cast<GetMathMode>(dlsym(library, "cublasGetMathMode"));
  }();
  if (get_math_mode == nullptr) return false;
  void* handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(torch_get_current_cuda_blas_handle(&handle));
  cublasMath_t mode = CUBLAS_DEFAULT_MATH;
  return get_math_mode(static_cast<cublasHandle_t>(handle), &mode) == CUBLAS_STATUS_SUCCESS &&
         (mode & CUBLAS_TF32_TENSOR_OP_MATH) != 0;
}

// A prepared arena of two-byte elements: the plain one, then, on 256 bytes, its folded twin. Its size tells it apart.
int64_t folded_at(const EncoderShape& shape) { return (2 * MatrixLayout(shape).size() + 255) / 256 * 256; }
int64_t prepared_elements(const EncoderShape& shape) {
  return (folded_at(shape) + static_cast<int64_t>(small_folded_bytes(shape))) / 2;
}

void check_shape(const EncoderShape& shape) {
  const auto positive = [](int64_t value, const char* what) {
    require(value > 0 && value <= INT_MAX, kName, std::string(what) + " must be positive");
  };
  positive(shape.layers, "layers");
  positive(shape.hidden, "hidden");
  positive(shape.embedding, "the word table's width");
  positive(shape.heads, "heads");
  positive(shape.intermediate, "intermediate");
  require(shape.hidden % shape.heads == 0, kName, "hidden is not a multiple of heads");
  require(shape.head_size() % 2 == 0 && shape.head_size() <= 128, kName, "head size must be even and at most 128");
}

Tensor encoder(const Tensor& ids_in, const Tensor& segments_in, const Tensor& mask_in, const Tensor& word_in,
               const Tensor& position_in, const Tensor& segment_in, const Tensor& matrices_in, const Tensor& vectors_in,
               int64_t layers, int64_t hidden, int64_t heads, int64_t intermediate, std::string activation,
               bool pre_norm, double epsilon, int64_t position_offset, bool count_positions, std::string output) {
  require(ids_in.dim() == 2, kName, "ids must be [batch, length]");
  require(word_in.dim() == 2, kName, "word must be [words, width]");
  const int64_t batch = ids_in.size(0), length = ids_in.size(1), width = word_in.size(1);
  const auto type = word_in.scalar_type();
  const auto ids = checked(ids_in, ScalarType::Long, {batch, length}, kName, "ids");
  const auto segments = checked(segments_in, ScalarType::Long, {batch, length}, kName, "segments");
  const auto mask = checked(mask_in, ScalarType::Long, {batch, length}, kName, "mask");
  const auto word = checked(word_in, type, {-1, width}, kName, "word");
  const auto position = checked(position_in, type, {-1, width}, kName, "position");
  const auto segment = checked(segment_in, type, {-1, width}, kName, "segment");

  const EncoderShape shape{layers,          hidden,
                           width,           heads,
                           intermediate,    parse_activation(activation, kName),
                           pre_norm,        static_cast<float>(epsilon),
                           position_offset, count_positions};
  check_shape(shape);
  const DataType number = data_type(word, kName, "word");
  const bool prepared = number != DataType::fp32 && matrices_in.numel() == prepared_elements(shape);
  const auto matrices =
      checked(matrices_in, type, {prepared ? prepared_elements(shape) : MatrixLayout(shape).size()}, kName, "matrices");
  const auto vectors = checked(vectors_in, ScalarType::Float, {VectorLayout(shape).size()}, kName, "vectors");
  require(batch * length <= INT_MAX, kName, "batch times length must fit 31 bits");

  const Output kind = parse_output(output);
  const torch::stable::accelerator::DeviceGuard guard(ids.get_device_index());
  std::vector<int64_t> sizes{batch, length, hidden};
  if (kind != Output::hidden) sizes = {batch, hidden};
  const Tensor result = empty(word, sizes, type);
  if (batch == 0 || length == 0) return torch::stable::fill_(result, 0);

  const Model model{number,
                    number == DataType::fp32 && torch_allows_tf32(),
                    word.data_ptr(),
                    position.data_ptr(),
                    segment.data_ptr(),
                    static_cast<int>(word.size(0)),
                    static_cast<int>(position.size(0)),
                    static_cast<int>(segment.size(0)),
                    matrices.data_ptr(),
                    data<const float>(vectors),
                    prepared ? data<const char>(matrices) + folded_at(shape) : nullptr,
                    shape,
                    kind};
  const Call call{data<const int64_t>(ids), data<const int64_t>(segments), data<const int64_t>(mask),
                  result.data_ptr(),        static_cast<int>(batch),       static_cast<int>(length)};
  const Request request{model, call};
  const auto allocate = [&word](size_t bytes) -> std::shared_ptr<void> {
    auto tensor = std::make_shared<Tensor>(empty(word, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    void* memory = tensor->data_ptr();
    return {std::move(tensor), memory};
  };
  run(request, allocate, current_stream(ids));
  return result;
}

// The arena with what small_fold makes of it behind, where the type has that path; a plain copy otherwise (an operator
// must not return its own argument).
Tensor prepare(const Tensor& matrices_in, int64_t layers, int64_t hidden, int64_t embedding, int64_t intermediate,
               std::optional<Tensor> vectors_in) {
  constexpr const char* kPrepare = "prepare";
  EncoderShape shape{};
  shape.layers = layers;
  shape.hidden = hidden;
  shape.embedding = embedding;
  shape.intermediate = intermediate;
  shape.heads = 1;
  const auto type = matrices_in.scalar_type();
  const DataType number = data_type(matrices_in, kPrepare, "matrices");
  const auto matrices = checked(matrices_in, type, {MatrixLayout(shape).size()}, kPrepare, "matrices");
  const bool folds = vectors_in.has_value() && number != DataType::fp32 &&
                     vectors_in->numel() == VectorLayout(shape).size();  // a pre-norm arena is longer
  if (!folds) return torch::stable::clone(matrices);
  const auto vectors = checked(*vectors_in, ScalarType::Float, {VectorLayout(shape).size()}, kPrepare, "vectors");
  const torch::stable::accelerator::DeviceGuard guard(matrices.get_device_index());
  const auto stream = current_stream(matrices);
  const auto out = empty(matrices, {prepared_elements(shape)}, type);
  check(cudaMemcpyAsync(out.data_ptr(), matrices.data_ptr(), MatrixLayout(shape).size() * element_size(number),
                        cudaMemcpyDeviceToDevice, stream),
        kPrepare);
  for_type(number, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (!std::is_same_v<T, float>) {
      check(small_fold(shape, data<const T>(matrices), data<const float>(vectors), data<char>(out) + folded_at(shape),
                       stream),
            kPrepare);
    }
  });
  return out;
}

}  // namespace
}  // namespace efft::cuda

STABLE_TORCH_LIBRARY_IMPL(efft, CUDA, m) {
  m.impl("encoder", TORCH_BOX(&efft::cuda::encoder));
  m.impl("prepare", TORCH_BOX(&efft::cuda::prepare));
}
