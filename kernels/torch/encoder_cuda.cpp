// The encoder's operators for CUDA tensors: check, hand raw pointers to the engine.
#include <cublas_v2.h>
#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <climits>
#include <memory>
#include <optional>
#include <type_traits>

#include "../cuda/engine/eight.h"
#include "../cuda/engine/fold.h"
#include "../cuda/engine/lanes.h"
#include "../cuda/engine/position_tables.h"
#include "efft/cuda/rows/positions.cuh"
#include "tensors_cuda.h"

namespace efft::cuda {
namespace {

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
  check_shim(torch_get_current_cuda_blas_handle(&handle), "asking for the cuBLAS handle");
  cublasMath_t mode = CUBLAS_DEFAULT_MATH;
  return get_math_mode(static_cast<cublasHandle_t>(handle), &mode) == CUBLAS_STATUS_SUCCESS &&
         (mode & CUBLAS_TF32_TENSOR_OP_MATH) != 0;
}

// A prepared arena of two-byte elements: the plain one, then, on 256 bytes, its folded twin. Its size tells it apart.
int64_t folded_at(const Lowered& encoder) {
  return (2 * arena_elements(encoder.slots, SlotKind::matrix) + 255) / 256 * 256;
}
// Then the tables of positions, where there are any.
int64_t position_tables_at(const Lowered& encoder) {
  return folded_at(encoder) + static_cast<int64_t>(folded_bytes(encoder));
}
int64_t prepared_elements(const Lowered& encoder) {
  return position_tables_at(encoder) / 2 + position_table_elements(encoder);
}
bool is_prepared(const Tensor& matrices, const Lowered& encoder) {
  return matrices.dim() == 1 && matrices.element_size() == 2 && encoder.spec.norm == NormPlace::post &&
         matrices.numel() == prepared_elements(encoder);
}

// Throws std::runtime_error in one line for an encoder that the engine cannot run yet.
void check_runs(const EncoderSpec& spec) {
  check_known(
      spec,
      {"layers",    "hidden",   "heads",  "intermediate", "embedding", "activation",   "norm",       "epsilon",
       "positions", "offset",   "pad",    "head",         "kv_heads",  "normalise",    "first_norm", "embedding_norm",
       "types",     "gated",    "rotary", "rotary_size",  "window",    "local",        "scale",      "relative",
       "buckets",   "distance", "c2p",    "p2c",          "layer_of",  "dropout_token"},
      "the CUDA engine");
  buckets_of(spec);
}

Tensor run_encoder(const Tensor& ids_in, const Tensor& segments_in, const Tensor& mask_in, const Weights& weights,
                   const std::shared_ptr<const Lowered>& encoder, const std::string& output) {
  const Output wanted = output_of(output);
  static thread_local std::shared_ptr<const Lowered> runs;  // the last one looked at: nearly always the same
  if (runs != encoder) {
    check_runs(encoder->spec);
    runs = encoder;
  }
  check_call(ids_in, segments_in, mask_in, weights, *encoder);
  check_cuda("ids", ids_in);
  const DeviceGuard guard(ids_in.get_device_index());
  const bool in_bytes = weights.matrices.scalar_type() == ScalarType::Byte;
  const bool prepared = !in_bytes && is_prepared(weights.matrices, *encoder);
  if (!in_bytes) {
    if (!prepared) check_matrices(weights.matrices, *encoder);
    check_type("matrices", weights.matrices, weights.word.scalar_type());
  }
  const InputSizes sizes = sizes_of(ids_in, mask_in);
  const Tensor ids = dense(ids_in), segments = dense(segments_in), mask = sizes.packed ? mask_in : dense(mask_in);
  const Tensor word = dense(weights.word), position = dense(weights.position);
  const Tensor segment = dense(weights.segment), vectors = dense(weights.vectors);
  const Tensor matrices = dense(weights.matrices);
  const Tensor result = empty(word, result_sizes(sizes, encoder->spec, wanted), word.scalar_type());
  if (ids.numel() == 0) return torch::stable::fill_(result, 0);

  const Type type = type_of(word);
  Prepared eight{nullptr, prepared ? data<const char>(matrices) + folded_at(*encoder) : nullptr};
  if (in_bytes) eight = prepared_eight_bits(*encoder, matrices.data_ptr(), matrices.numel());
  const bool tables = prepared && encoder->spec.relative == Relative::disentangled;
  const Model model{encoder,
                    type,
                    type == Type::f32 && torch_allows_tf32(),
                    word.data_ptr(),
                    encoder->spec.positions == PositionCount::none ? nullptr : position.data_ptr(),
                    encoder->spec.types ? segment.data_ptr() : nullptr,
                    static_cast<int>(word.size(0)),
                    static_cast<int>(position.size(0)),
                    static_cast<int>(segment.size(0)),
                    matrices.data_ptr(),
                    data<const float>(vectors),
                    eight.folded,
                    wanted,
                    tables ? data<const char>(matrices) + position_tables_at(*encoder) : nullptr,
                    eight.eight};
  Call call{data<const int64_t>(ids), data<const int64_t>(segments), data<const int64_t>(mask),
            result.data_ptr(),        static_cast<int>(sizes.batch), static_cast<int>(sizes.length)};
  if (sizes.packed) {
    call.offsets = data<const int64_t>(mask);
    call.stride = mask.stride(0);
    call.tokens = static_cast<int>(sizes.cells);
  }
  const auto allocate = [&word](size_t bytes) -> std::shared_ptr<void> {
    auto tensor = std::make_shared<Tensor>(empty(word, {static_cast<int64_t>(bytes)}, ScalarType::Byte));
    void* memory = tensor->data_ptr();
    return {std::move(tensor), memory};
  };
  run({model, call}, allocate, current_stream(ids));
  return result;
}

Tensor encode(const Tensor& ids, const Tensor& segments, const Tensor& mask, const std::vector<Tensor>& weights,
              const std::string& spec, const std::string& output) {
  return run_encoder(ids, segments, mask, weights_of(weights), lowered(spec), output);
}

// The arena with what fold_weights makes of it behind.
Tensor folded(const Tensor& matrices_in, const Tensor& vectors_in, const Lowered& encoder) {
  const DeviceGuard guard(matrices_in.get_device_index());
  const Tensor matrices = dense(matrices_in), vectors = dense(vectors_in);
  const auto stream = current_stream(matrices);
  const Tensor out = empty(matrices, {prepared_elements(encoder)}, matrices.scalar_type());
  check(cudaMemcpyAsync(out.data_ptr(), matrices.data_ptr(), 2 * matrices.numel(), cudaMemcpyDeviceToDevice, stream),
        "copying the weights");
  for_type(type_of(matrices), [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      check(fold_weights(encoder, data<const T>(matrices), data<const float>(vectors),
                         data<char>(out) + folded_at(encoder), stream),
            "folding the weights");
      check(make_position_tables(encoder, data<const float>(vectors),
                                 reinterpret_cast<T*>(data<char>(out) + position_tables_at(encoder)), stream),
            "the tables of positions");
    }
  });
  return out;
}

// The archived 8-bit form as eight.h has it; what has it already stays as it is.
Tensor with_eight_bits(const Weights& weights, const Lowered& encoder) {
  const Type type = type_of(weights.word);
  STD_TORCH_CHECK(type != Type::f32, "matrices: 8 bits on a GPU go with tables in BFloat16 or Half, not Float");
  const Tensor archive = dense(weights.matrices), vectors = dense(weights.vectors);
  const int64_t size = archived_bytes(encoder, archive.data_ptr(), archive.numel());
  if (size == 0) return weights.matrices;
  const EightBitBlock block(encoder, size, folds(DeviceInfo::current(), encoder.spec));
  const Tensor out = empty(archive, {block.bytes}, ScalarType::Byte);
  prepare_eight_bits(encoder, type, archive.data_ptr(), block, data<const float>(vectors), out.data_ptr(),
                     current_stream(archive));
  return out;
}

// The tables and the vectors stay as they are; the matrices, too, where folding them is of no use.
std::vector<Tensor> prepare_weights(std::vector<Tensor> tensors, const std::string& spec) {
  const auto encoder = lowered(spec);
  check_runs(encoder->spec);
  const Weights weights = weights_of(tensors);
  check_weights(weights, *encoder);
  check_cuda("word", weights.word);
  const DeviceGuard guard(weights.word.get_device_index());
  if (weights.matrices.scalar_type() == ScalarType::Byte) {
    tensors[kMatrices] = with_eight_bits(weights, *encoder);
    return tensors;
  }
  if (is_prepared(weights.matrices, *encoder)) return tensors;
  check_matrices(weights.matrices, *encoder);
  const bool tables = encoder->spec.relative == Relative::disentangled && encoder->spec.norm == NormPlace::post;
  if (weights.matrices.element_size() == 2 && (tables || folds(DeviceInfo::current(), encoder->spec)))
    tensors[kMatrices] = folded(weights.matrices, weights.vectors, *encoder);
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
  return run_encoder(ids, segments, mask, {word, position, segment, matrices, vectors}, encoder, output);
}

// A copy where nothing is folded, since that schema knows of no alias.
Tensor prepare_0_1(const Tensor& matrices, int64_t layers, int64_t hidden, int64_t embedding, int64_t intermediate,
                   std::optional<Tensor> vectors) {
  const auto encoder = lowered(spec_of(layers, hidden, embedding, intermediate, false));
  check_cuda("matrices", matrices);
  check_matrices(matrices, *encoder);
  // A pre-norm arena of vectors is longer.
  const bool post = vectors.has_value() && vectors->numel() == arena_elements(encoder->slots, SlotKind::vector);
  if (!post || matrices.element_size() != 2) return torch::stable::clone(matrices);
  check_device("vectors", *vectors, "matrices", matrices);
  check_type("vectors", *vectors, ScalarType::Float);
  return folded(matrices, *vectors, *encoder);
}

}  // namespace
}  // namespace efft::cuda

STABLE_TORCH_LIBRARY_IMPL(efft, CUDA, m) {
  m.impl("encode", TORCH_BOX(&efft::cuda::encode));
  m.impl("prepare_weights", TORCH_BOX(&efft::cuda::prepare_weights));
  m.impl("encoder", TORCH_BOX(&efft::cuda::encoder_0_1));
  m.impl("prepare", TORCH_BOX(&efft::cuda::prepare_0_1));
}
