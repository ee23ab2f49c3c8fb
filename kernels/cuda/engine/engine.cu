#include <algorithm>
#include <stdexcept>
#include <string>

#include "efft/cuda/rows/add_norm.cuh"
#include "efft/cuda/attention/attention.cuh"
#include "efft/cuda/rows/bias_activation.cuh"
#include "efft/cuda/rows/embed_norm.cuh"
#include "efft/cuda/linear/few.cuh"
#include "efft/cuda/rows/pool.cuh"
#include "efft/cuda/linear/small.cuh"
#include "efft/cuda/rows/unpad.cuh"
#include "efft/cuda/linear/many.cuh"
#include "engine.h"

namespace efft::cuda {
namespace {

constexpr size_t kAlignment = 256;
// Up to this many tokens of capacity the chained kernels are the faster path.
constexpr int kSmallTokens = 512;
// Up to here padded tokens cost no more than valid ones: a product over so few rows is bound by its weights, and
// waiting for the device costs more.
constexpr int kFewTokens = 256;

// Beyond, the first layer loses more on kernels chosen for padded tokens than the host's wait costs.
constexpr int kEarlyTokens = 1024;

// Rounds up to a multiple of an eighth of the power of two below, 16 at least: at most an eighth is waste.
int64_t round_tokens(int64_t tokens) {
  int64_t step = 16;
  while (step * 16 <= tokens) step *= 2;
  return (tokens + step - 1) / step * step;
}

// 1, 2, 3, 4, 6, 8, 12, ...: powers of two and the numbers half way between.
int64_t round_size(int64_t size) {
  int64_t power = 1;
  while (power < size) power *= 2;
  return power >= 4 && power / 4 * 3 >= size ? power / 4 * 3 : power;
}

// The encoder's steps, on one type.
template <typename T>
class Road {
 public:
  Road(const Model& model, const Bucket& bucket, const Workspace& workspace, cudaStream_t stream)
      : model_(model),
        shape_(model.shape),
        bucket_(bucket),
        workspace_(workspace),
        matrix_at_(model.shape),
        vector_at_(model.shape),
        tokens_(workspace.tokens(bucket)),
        width_(static_cast<int>(model.shape.hidden)),
        path_(path_for(model, bucket)),
        stream_(stream) {}

  void embed() {
    const EmbeddingTables<T> tables{static_cast<const T*>(model_.word),
                                    static_cast<const T*>(model_.position),
                                    static_cast<const T*>(model_.segment),
                                    model_.words,
                                    model_.positions,
                                    model_.segments};
    const EmbeddingNorm norm{vector(vector_at_.embedding_gamma()), vector(vector_at_.embedding_beta()), shape_.epsilon,
                             static_cast<int>(shape_.position_offset), shape_.count_positions};
    const Unpadded& unpadded = workspace_.unpadded;
    check(embed_norm(unpadded.call, unpadded.cu_seqlens, unpadded.rows, tokens_, tables, norm,
                     as<T>(workspace_.embedded), bucket_.tokens, static_cast<int>(shape_.embedding), stream_),
          "the embeddings");
  }

  // What the embeddings are first needed for.
  void attend_first() { attend(0, as<T>(workspace_.hidden)); }

  // From the embeddings to the last hidden states, except for the LayerNorm that ends them: returns that.
  AddNorm<T> layers() {
    if (shape_.projects()) {
      linear(as<const T>(workspace_.embedded),
             {matrix(matrix_at_.projection()), vector(vector_at_.projection_bias()), shape_.embedding}, width_,
             Pointwise::none, as<T>(workspace_.hidden));
    }
    if (path_ == Path::small) return small_layers();
    return shape_.pre_norm ? pre_norm_layers() : post_norm_layers();
  }

  void finish(const AddNorm<T>& last) {
    const Unpadded& unpadded = workspace_.unpadded;
    if (model_.output == Output::hidden) {
      return check(
          add_norm_padded(last, unpadded.slots, unpadded.call, bucket_.batch * bucket_.length, width_, stream_),
          "the result");
    }
    norm(last);
    check(pool<T>(last.out, model_.output, unpadded.cu_seqlens, unpadded.call, bucket_.batch, width_, stream_),
          "the result");
  }

 private:
  static int as_int(int64_t value) { return static_cast<int>(value); }
  template <typename U>
  static U* as(void* pointer) {
    return static_cast<U*>(pointer);
  }
  struct Weights {
    const T* w;         // [outputs, inputs]
    const float* bias;  // [outputs] or nullptr
    int64_t inputs;
  };
  struct Norm {
    const float* gamma;  // [H]
    const float* beta;   // [H]
  };
  const T* matrix(int64_t offset) const { return static_cast<const T*>(model_.matrices) + offset; }
  const float* vector(int64_t offset) const { return model_.vectors + offset; }

  AddNorm<T> small_layers() {
    if constexpr (std::is_same_v<T, float>) {
      return {};
    } else {
      const int64_t last = shape_.layers - 1;
      T* sum = as<T>(workspace_.sum);
      check(encoder_layers_small(shape_, as<const T>(workspace_.hidden),
                                 bucket_.attended ? as<const T>(workspace_.context) : nullptr, matrix(0),
                                 model_.vectors, model_.folded, tokens_, workspace_.unpadded.cu_seqlens, bucket_.batch,
                                 bucket_.length, bucket_.tokens, sum, workspace_.scratch, stream_),
            "the layers");
      return {sum,
              nullptr,
              nullptr,
              vector(vector_at_.output_gamma(last)),
              vector(vector_at_.output_beta(last)),
              shape_.epsilon,
              as<T>(workspace_.hidden),
              nullptr};
    }
  }

  // Each layer: hidden = LayerNorm(hidden + attention(hidden)), then the same with the feed-forward network.
  AddNorm<T> post_norm_layers() {
    T* hidden = as<T>(workspace_.hidden);
    AddNorm<T> step{};
    for (int64_t layer = 0; layer < shape_.layers; ++layer) {
      if (layer > 0) norm(step);
      if (layer > 0 || !bucket_.attended) attend(layer, hidden);
      norm(close_block(
          as<const T>(workspace_.context),
          {matrix(matrix_at_.attention_output(layer)), vector(vector_at_.attention_output_bias(layer)), width_},
          {vector(vector_at_.attention_gamma(layer)), vector(vector_at_.attention_beta(layer))}, hidden, hidden));
      open_feed_forward(layer, hidden);
      step =
          close_block(as<const T>(workspace_.intermediate),
                      {matrix(matrix_at_.output(layer)), vector(vector_at_.output_bias(layer)), shape_.intermediate},
                      {vector(vector_at_.output_gamma(layer)), vector(vector_at_.output_beta(layer))}, hidden, hidden);
    }
    return step;
  }

  // Each layer: hidden += attention(LayerNorm(hidden)), then the same with the feed-forward network; hidden's next norm
  // is taken where hidden is written.
  AddNorm<T> pre_norm_layers() {
    T* hidden = as<T>(workspace_.hidden);
    T* normed = as<T>(workspace_.normed);
    AddNorm<T> step{
        hidden,         nullptr, nullptr, vector(vector_at_.attention_gamma(0)), vector(vector_at_.attention_beta(0)),
        shape_.epsilon, normed,  nullptr};
    for (int64_t layer = 0; layer < shape_.layers; ++layer) {
      const bool last = layer + 1 == shape_.layers;
      norm(step);
      attend(layer, normed);
      norm(close_block(
          as<const T>(workspace_.context),
          {matrix(matrix_at_.attention_output(layer)), vector(vector_at_.attention_output_bias(layer)), width_},
          {vector(vector_at_.output_gamma(layer)), vector(vector_at_.output_beta(layer))}, hidden, normed));
      open_feed_forward(layer, normed);
      step = close_block(as<const T>(workspace_.intermediate),
                         {matrix(matrix_at_.output(layer)), vector(vector_at_.output_bias(layer)), shape_.intermediate},
                         {vector(last ? vector_at_.final_gamma() : vector_at_.attention_gamma(layer + 1)),
                          vector(last ? vector_at_.final_beta() : vector_at_.attention_beta(layer + 1))},
                         hidden, normed);
    }
    step.sum = nullptr;  // nothing adds to it any more
    return step;
  }

  // context = attention over `input`.
  void attend(int64_t layer, const T* input) {
    T* qkv = as<T>(workspace_.qkv);
    // The bias of q, k and v is attention's to add: it does so while loading.
    linear(input, {matrix(matrix_at_.qkv(layer)), nullptr, width_}, 3 * width_, Pointwise::none, qkv);
    check(attention(as<const T>(qkv), vector(vector_at_.qkv_bias(layer)), workspace_.unpadded.cu_seqlens,
                    as<T>(workspace_.context), bucket_.batch, static_cast<int>(shape_.heads),
                    static_cast<int>(shape_.head_size()), bucket_.length, bucket_.tokens, stream_,
                    /*programmatic=*/true),
          "attention");
  }

  // intermediate = activation of the feed-forward network's first half.
  void open_feed_forward(int64_t layer, const T* input) {
    linear(input, {matrix(matrix_at_.intermediate(layer)), vector(vector_at_.intermediate_bias(layer)), width_},
           shape_.intermediate, pointwise(shape_.activation), as<T>(workspace_.intermediate));
  }

  // The product of out = LayerNorm(x w^T + bias + carried); returns what is left to do. Where out is another array than
  // carried (pre-norm), carried becomes the sum.
  AddNorm<T> close_block(const T* x, const Weights& p, const Norm& n, T* carried, T* out) {
    T* const sum = as<T>(workspace_.sum);
    // Own kernels add the bias too, so that what they write is what a pre-norm block carries on.
    T* const whole = out != carried ? carried : sum;
    const AddNorm<T> rest{whole, nullptr, nullptr, n.gamma, n.beta, shape_.epsilon, out, nullptr};
    if (path_ == Path::hopper) {
      own(x, p, width_, Pointwise::none, carried, whole);
      return rest;
    }
    if (wide(x, p, width_, Pointwise::none, carried, whole)) return rest;
    multiply(x, p.w, carried, sum, width_, p.inputs);
    return {sum, p.bias, nullptr, n.gamma, n.beta, shape_.epsilon, out, out != carried ? carried : nullptr};
  }

  // y = activation(x w^T + bias).
  void linear(const T* x, const Weights& p, int64_t outputs, Pointwise kind, T* y) {
    if (path_ != Path::library) return own(x, p, outputs, kind, nullptr, y);
    if (wide(x, p, outputs, kind, nullptr, y)) return;
    multiply(x, p.w, nullptr, y, outputs, p.inputs);
    if (p.bias == nullptr && kind == Pointwise::none) return;
    check(bias_activation(as<const T>(y), p.bias, kind, y, tokens_, bucket_.tokens, as_int(outputs), stream_),
          "bias and activation");
  }

  // y = activation(x w^T + bias), plus addend unless that is nullptr, on the kernels that read the number of tokens.
  void own(const T* x, const Weights& p, int64_t outputs, Pointwise kind, const T* addend, T* y) {
    if constexpr (!std::is_same_v<T, float>) {
      const auto a = arguments(p, outputs, kind, addend, y);
      const OwnChoice choice = choose_own(expected_tokens(bucket_.tokens), a.n, a.k, kind, addend != nullptr);
      check(any_linear(x, p.w, a, bucket_.tokens, choice, stream_), "a product");
    }
  }

  // What own kernels are told of y = activation(x w^T + bias) + addend.
  LinearArguments<T> arguments(const Weights& p, int64_t outputs, Pointwise kind, const T* addend, T* y) const {
    return {{p.bias, kind, addend, nullptr, nullptr, nullptr, y, nullptr},
            {},
            tokens_,
            as_int(outputs),
            as_int(p.inputs),
            0,
            0};
  }

  // y = activation(x w^T + bias), plus addend unless that is nullptr, on the kernel for many tokens. False where
  // another one is faster.
  bool wide(const T* x, const Weights& p, int64_t outputs, Pointwise kind, const T* addend, T* y) {
    if constexpr (std::is_same_v<T, float>) {
      return false;
    } else {
      const int n = as_int(outputs), k = as_int(p.inputs);
      if (path_ != Path::library || !linear_supported(n, k)) return false;
      for (const void* matrix : {static_cast<const void*>(x), static_cast<const void*>(p.w)})
        if (!aligned(matrix)) return false;
      const WideCut cut = choose_wide(bucket_.tokens, n, k, kind);
      if (cut == WideCut::none) return false;
      check(wide_linear(x, p.w, arguments(p, outputs, kind, addend, y), bucket_.tokens, cut, Order::kOverlap, stream_),
            "a product");
      return true;
    }
  }

  // y = x w^T, plus addend unless that is nullptr, through cuBLASLt.
  void multiply(const T* x, const T* w, const T* addend, T* y, int64_t outputs, int64_t inputs) {
    const Product product{model_.type, model_.tf32, bucket_.tokens, as_int(outputs), as_int(inputs)};
    Matmul::of_current_device().run(product, x, w, addend, y, workspace_.scratch, stream_);
  }

  void norm(const AddNorm<T>& step) {
    check(add_norm(step, tokens_, bucket_.tokens, width_, stream_), "residual and norm");
  }

  const Model& model_;
  const EncoderShape& shape_;
  const Bucket& bucket_;
  const Workspace& workspace_;
  MatrixLayout matrix_at_;
  VectorLayout vector_at_;
  const int* tokens_;
  int width_;
  Path path_;
  cudaStream_t stream_;
};

// Whether every product of the encoder can run on the library's own sm_90a kernels.
bool hopper_supported(const EncoderShape& shape) {
  const auto supported = [](int64_t outputs, int64_t inputs) {
    return linear_supported(static_cast<int>(outputs), static_cast<int>(inputs));
  };
  return supported(3 * shape.hidden, shape.hidden) && supported(shape.hidden, shape.hidden) &&
         supported(shape.intermediate, shape.hidden) && supported(shape.hidden, shape.intermediate) &&
         (!shape.projects() || supported(shape.hidden, shape.embedding));
}

}  // namespace

Bucket bucket_for(int64_t batch, int64_t length, int64_t tokens, bool tight) {
  const int64_t columns = std::max<int64_t>(round_size(length), 32);
  const int64_t rows = round_size(batch);
  return {static_cast<int>(rows), static_cast<int>(columns),
          static_cast<int>(std::min(round_tokens(tokens), rows * columns)), tight, false};
}

Workspace::Workspace(void* base, const Model& model, const Bucket& bucket) {
  char* next = static_cast<char*>(base);
  const auto take = [&next](size_t size) {
    void* region = next;
    next += (size + kAlignment - 1) / kAlignment * kAlignment;
    return region;
  };
  const auto& shape = model.shape;
  const size_t token_bytes = element_size(model.type) * bucket.tokens;
  const size_t padded = size_t{1} * bucket.batch * bucket.length;
  unpadded.call = static_cast<Call*>(take(sizeof(Call)));
  unpadded.cu_seqlens = static_cast<int*>(take(4 * (size_t{1} + bucket.batch)));
  unpadded.rows = static_cast<int*>(take(4 * padded));
  unpadded.slots = static_cast<int*>(take(4 * padded));
  const size_t early_bytes = element_size(model.type) * (bucket.attended ? padded : bucket.tokens);
  embedded = take(early_bytes * shape.embedding);
  if (bucket.attended) context = take(early_bytes * shape.hidden);
  char* shared = next;
  qkv = take(token_bytes * 3 * shape.hidden);
  front_bytes = (bucket.attended ? next : shared) - static_cast<char*>(base);
  if (!bucket.attended) context = take(token_bytes * shape.hidden);
  char* attention_end = next;
  next = shared;
  intermediate = take(token_bytes * shape.intermediate);
  next = std::max(next, attention_end);
  hidden = shape.projects() ? take(token_bytes * shape.hidden) : embedded;
  sum = take(token_bytes * shape.hidden);
  normed = shape.pre_norm ? take(token_bytes * shape.hidden) : hidden;
  const Path path = path_for(model, bucket);
  scratch = take(path == Path::library ? kMatmulWorkspaceBytes
                 : path == Path::small ? small_workspace_bytes(shape, bucket.tokens)
                                       : 0);
  bytes = next - static_cast<char*>(base);
}

Path path_for(const Model& model, const Bucket& bucket) {
  if (model.type == DataType::fp32 || !hopper_supported(model.shape)) return Path::library;
  if (model.folded != nullptr && bucket.tokens <= kSmallTokens && small_supported(model.shape)) return Path::small;
  // cuBLASLt's products are the faster ones, unless most of their rows are padding.
  return bucket.tight ? Path::library : Path::hopper;
}

bool worth_counting(const Model& model, const Bucket& bucket) {
  return path_for(model, bucket) != Path::small && bucket.batch > 1 && bucket.tokens > kFewTokens;
}

bool attends_early(const Model& model, const Bucket& padded) {
  return padded.tokens <= kEarlyTokens && model.type != DataType::fp32 && !model.shape.projects() &&
         !model.shape.pre_norm && model.shape.layers > 0 && hopper_supported(model.shape);
}

void enqueue_front(const Model& model, const Call& call, const Bucket& bucket, const Workspace& workspace,
                   const TokenReport& report, cudaStream_t stream) {
  check(unpad(call, bucket.batch, workspace.unpadded, report, stream), "padding removal");
  for_type(model.type, [&](auto zero) {
    Road<decltype(zero)> road(model, bucket, workspace, stream);
    road.embed();
    if (bucket.attended) road.attend_first();
  });
}

void enqueue_encoder(const Model& model, const Bucket& bucket, const Workspace& workspace, cudaStream_t stream) {
  for_type(model.type, [&](auto zero) {
    Road<decltype(zero)> road(model, bucket, workspace, stream);
    road.finish(road.layers());
  });
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("efft: ") + what + " failed: " + cudaGetErrorString(error));
}

}  // namespace efft::cuda
