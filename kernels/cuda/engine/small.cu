#include <algorithm>

#include "efft/cuda/attention/attention.cuh"
#include "efft/cuda/linear/fold.cuh"
#include "efft/cuda/linear/few.cuh"
#include "efft/cuda/linear/small.cuh"
#include "efft/cuda/linear/many.cuh"

namespace efft::cuda {

namespace {

constexpr size_t kAlignment = 256;

// Cuts arrays out of one allocation, or only counts their bytes where it starts at null.
class Carver {
 public:
  explicit Carver(const void* start) : at_(reinterpret_cast<size_t>(start)) {}
  template <typename U>
  U* take(size_t elements) {
    const size_t start = at_;
    at_ += (elements * sizeof(U) + kAlignment - 1) / kAlignment * kAlignment;
    return reinterpret_cast<U*>(start);
  }
  size_t position() const { return at_; }

 private:
  size_t at_;
};

template <typename T>
struct FoldedWeights {
  T* w;         // [n, k]
  float* sums;  // [n]
  float* bias;  // [n]

  FoldedWeights(Carver& carver, size_t n, size_t k)
      : w(carver.take<T>(n * k)), sums(carver.take<float>(n)), bias(carver.take<float>(n)) {}
};

// One layer's; the first layer's QKV is never used, since its input is normalised already.
template <typename T>
struct FoldedLayer {
  FoldedWeights<T> qkv, up;

  FoldedLayer(const EncoderShape& s, Carver& carver)
      : qkv(carver, 3 * s.hidden, s.hidden), up(carver, s.intermediate, s.hidden) {}
  static size_t bytes(const EncoderShape& s) {
    Carver carver(nullptr);
    FoldedLayer(s, carver);
    return carver.position();
  }
  static FoldedLayer at(const EncoderShape& s, const void* folded, int64_t layer) {
    Carver carver(static_cast<const char*>(folded) + layer * bytes(s));
    return FoldedLayer(s, carver);
  }
};

// A block's output before its LayerNorm, what its product tells of the rows, and the scale and shift that the next
// product makes of that.
template <typename T>
struct BlockOutput {
  T* sum;            // [capacity, H]
  Moments* moments;  // [capacity, tiles along H], at most H / 8
  RowNorm* norm;     // [capacity]

  BlockOutput(Carver& carver, size_t rows, size_t width)
      : sum(carver.take<T>(rows * width)),
        moments(carver.take<Moments>(rows * width / 8)),
        norm(carver.take<RowNorm>(rows)) {}
};

template <typename T>
struct Buffers {
  BlockOutput<T> attention, feed_forward;
  T* qkv;           // [capacity, 3H]
  T* context;       // [capacity, H]
  T* intermediate;  // [capacity, I]

  Buffers(const EncoderShape& s, size_t rows, Carver& carver)
      : attention(carver, rows, s.hidden),
        feed_forward(carver, rows, s.hidden),
        qkv(carver.take<T>(rows * 3 * s.hidden)),
        context(carver.take<T>(rows * s.hidden)),
        intermediate(carver.take<T>(rows * s.intermediate)) {}
};

// What all calls of one run share.
struct Run {
  const EncoderShape& shape;
  const float* vectors;
  const int* tokens;
  const int* cu_seqlens;
  int batch, max_length, capacity;
  cudaStream_t stream;
};

template <typename T>
class SmallEncoder {
 public:
  SmallEncoder(const Run& run, const T* matrices, const void* folded, void* workspace)
      : run_(run),
        s_(run.shape),
        matrix_(s_),
        vector_(s_),
        matrices_(matrices),
        folded_(folded),
        carver_(workspace),
        buffers_(s_, run.capacity, carver_) {}

  cudaError_t forward(const T* hidden, const T* context, T* out) {
    for (int64_t layer = 0; layer < s_.layers && error_ == cudaSuccess; ++layer) {
      attend(layer, layer == 0 ? hidden : nullptr, layer == 0 ? context : nullptr);
      feed_forward(layer, layer + 1 < s_.layers ? buffers_.feed_forward.sum : out);
    }
    return error_;
  }

 private:
  // hidden: the layer's input, normalised, or nullptr where the layer before has left it in buffers_.feed_forward.
  // context: its attention, or nullptr where that is still to do.
  void attend(int64_t layer, const T* hidden, const T* context) {
    const int h = s_.hidden;
    const BlockOutput<T>& input = buffers_.feed_forward;
    if (context == nullptr) {
      if (hidden != nullptr)
        multiply(hidden, matrices_ + matrix_.qkv(layer), 3 * h, h, {},
                 {vector(vector_.qkv_bias(layer)), Pointwise::none, nullptr, nullptr, nullptr, nullptr, buffers_.qkv,
                  nullptr});
      else
        multiply_normalised(input, s_.intermediate, FoldedLayer<T>::at(s_, folded_, layer).qkv, 3 * h, Pointwise::none,
                            buffers_.qkv);
      if (error_ != cudaSuccess) return;
      error_ = attention<T>(buffers_.qkv, nullptr, run_.cu_seqlens, buffers_.context, run_.batch, s_.heads,
                            s_.head_size(), run_.max_length, run_.capacity, run_.stream, true);
      context = buffers_.context;
    }
    Epilogue<T> residual{vector(vector_.attention_output_bias(layer)),
                         Pointwise::none,
                         hidden != nullptr ? hidden : input.sum,
                         hidden != nullptr ? nullptr : input.norm,
                         nullptr,
                         nullptr,
                         buffers_.attention.sum,
                         buffers_.attention.moments};
    if (hidden == nullptr) {
      residual.gamma = vector(vector_.output_gamma(layer - 1));
      residual.beta = vector(vector_.output_beta(layer - 1));
    }
    multiply(context, matrices_ + matrix_.attention_output(layer), h, h, {}, residual);
  }

  void feed_forward(int64_t layer, T* sum) {
    const BlockOutput<T>& input = buffers_.attention;
    multiply_normalised(input, s_.hidden, FoldedLayer<T>::at(s_, folded_, layer).up, s_.intermediate,
                        pointwise(s_.activation), buffers_.intermediate);
    multiply(buffers_.intermediate, matrices_ + matrix_.output(layer), s_.hidden, s_.intermediate, {},
             {vector(vector_.output_bias(layer)), Pointwise::none, input.sum, input.norm,
              vector(vector_.attention_gamma(layer)), vector(vector_.attention_beta(layer)), sum,
              layer + 1 < s_.layers ? buffers_.feed_forward.moments : nullptr});
  }

  // `depth` of the product that made x.
  void multiply_normalised(const BlockOutput<T>& x, int depth, const FoldedWeights<T>& w, int n, Pointwise pointwise,
                           T* out) {
    multiply(x.sum, w.w, n, s_.hidden,
             {w.sums, s_.epsilon, x.moments, choose(s_.hidden, depth, Pointwise::none, true).columns(), x.norm},
             {w.bias, pointwise, nullptr, nullptr, nullptr, nullptr, out, nullptr});
  }
  void multiply(const T* x, const T* w, int n, int k, const InputNorm& norm, const Epilogue<T>& epilogue) {
    if (error_ != cudaSuccess) return;
    const LinearArguments<T> a{epilogue, norm, run_.tokens, n, k, 0, 0};
    OwnChoice choice = choose(n, k, epilogue.pointwise, epilogue.residual != nullptr);
    if (norm.weight_sums != nullptr && norm.parts(k) > kMostMoments) choice.wide = WideCut::none;
    error_ = any_linear<T>(x, w, a, run_.capacity, choice, run_.stream);
  }
  OwnChoice choose(int n, int k, Pointwise pointwise, bool closes) const {
    return choose_own(expected_tokens(run_.capacity), n, k, pointwise, closes);
  }
  const float* vector(int64_t offset) const { return run_.vectors + offset; }

  Run run_;
  EncoderShape s_;
  MatrixLayout matrix_;
  VectorLayout vector_;
  const T* matrices_;
  const void* folded_;
  Carver carver_;
  Buffers<T> buffers_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

bool small_supported(const EncoderShape& s) {
  return !s.pre_norm && s.layers > 0 && s.hidden % 64 == 0 && s.intermediate % 64 == 0 &&
         (s.head_size() == 32 || s.head_size() == 64) && s.head_size() * s.heads == s.hidden &&
         linear_supported(s.hidden, s.hidden);
}

size_t small_folded_bytes(const EncoderShape& shape) { return shape.layers * FoldedLayer<__half>::bytes(shape); }

size_t small_workspace_bytes(const EncoderShape& shape, int capacity) {
  Carver carver(nullptr);
  Buffers<__half>(shape, capacity, carver);
  return carver.position();
}

template <typename T>
cudaError_t small_fold(const EncoderShape& s, const T* matrices, const float* vectors, void* folded,
                       cudaStream_t stream) {
  const MatrixLayout matrix(s);
  const VectorLayout vector(s);
  const int h = s.hidden, i = s.intermediate;
  cudaError_t error = cudaSuccess;
  for (int64_t layer = 0; layer < s.layers && error == cudaSuccess; ++layer) {
    const FoldedLayer<T> to = FoldedLayer<T>::at(s, folded, layer);
    if (layer > 0)
      error = fold<T>(
          {matrices + matrix.qkv(layer), vectors + vector.qkv_bias(layer), vectors + vector.output_gamma(layer - 1),
           vectors + vector.output_beta(layer - 1), to.qkv.w, to.qkv.sums, to.qkv.bias},
          3 * h, h, stream);
    if (error == cudaSuccess)
      error = fold<T>({matrices + matrix.intermediate(layer), vectors + vector.intermediate_bias(layer),
                       vectors + vector.attention_gamma(layer), vectors + vector.attention_beta(layer), to.up.w,
                       to.up.sums, to.up.bias},
                      i, h, stream);
  }
  return error;
}

template <typename T>
cudaError_t encoder_layers_small(const EncoderShape& shape, const T* hidden, const T* context, const T* matrices,
                                 const float* vectors, const void* folded, const int* tokens, const int* cu_seqlens,
                                 int batch, int max_length, int capacity, T* out, void* workspace,
                                 cudaStream_t stream) {
  const Run run{shape, vectors, tokens, cu_seqlens, batch, max_length, capacity, stream};
  return SmallEncoder<T>(run, matrices, folded, workspace).forward(hidden, context, out);
}

#define EFFT_SMALL(T)                                                                                        \
  template cudaError_t small_fold(const EncoderShape&, const T*, const float*, void*, cudaStream_t);         \
  template cudaError_t encoder_layers_small(const EncoderShape&, const T*, const T*, const T*, const float*, \
                                            const void*, const int*, const int*, int, int, int, T*, void*,   \
                                            cudaStream_t);
EFFT_SMALL(__half)
EFFT_SMALL(__nv_bfloat16)

}  // namespace efft::cuda
