// Checks and times encoder_layers_small as a whole: against a double-precision encoder on the host, and in a graph.
// Build: with kernels/cuda/{small,linear,linear_fp16,linear_bf16,wide,wide_fp16,wide_bf16,attention,add_norm}.cu, as
// linear_check.cu.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "efft/cuda/rows/add_norm.cuh"
#include "efft/cuda/linear/small.cuh"
#include "lab.cuh"

using namespace efft;
using namespace efft::cuda;

using Matrix = std::vector<double>;

struct Random {
  std::minstd_rand generator;
  explicit Random(int seed) : generator(seed) {}
  float operator()(float scale) {
    return (static_cast<float>(generator()) / generator.max() - 0.5f) * 2 * std::sqrt(3.f) * scale;
  }
};

// y [rows, n] = x [rows, k] · w^T + bias
template <typename T>
Matrix product(const Matrix& x, const T* w, const float* bias, int rows, int n, int k) {
  Matrix y(size_t(rows) * n);
  std::vector<double> row(k);
  for (int j = 0; j < n; ++j) {
    for (int i = 0; i < k; ++i) row[i] = float(w[size_t(j) * k + i]);
    for (int t = 0; t < rows; ++t) {
      double sum = bias[j];
      for (int i = 0; i < k; ++i) sum += x[size_t(t) * k + i] * row[i];
      y[size_t(t) * n + j] = sum;
    }
  }
  return y;
}

void add_norm(Matrix& x, const Matrix& residual, const float* gamma, const float* beta, double epsilon, int width) {
  for (size_t start = 0; start < x.size(); start += width) {
    double mean = 0, variance = 0;
    for (int i = 0; i < width; ++i) mean += (x[start + i] += residual[start + i]) / width;
    for (int i = 0; i < width; ++i) variance += (x[start + i] - mean) * (x[start + i] - mean) / width;
    for (int i = 0; i < width; ++i)
      x[start + i] = (x[start + i] - mean) / std::sqrt(variance + epsilon) * gamma[i] + beta[i];
  }
}

Matrix attend(const Matrix& qkv, const std::vector<int>& starts, int heads, int size) {
  const int h = heads * size;
  Matrix out(qkv.size() / 3);
  for (size_t b = 0; b + 1 < starts.size(); ++b)
    for (int head = 0; head < heads; ++head)
      for (int q = starts[b]; q < starts[b + 1]; ++q) {
        std::vector<double> p;
        double total = 0;
        for (int k = starts[b]; k < starts[b + 1]; ++k) {
          double s = 0;
          for (int i = 0; i < size; ++i)
            s += qkv[size_t(q) * 3 * h + head * size + i] * qkv[size_t(k) * 3 * h + h + head * size + i];
          p.push_back(std::exp(s / std::sqrt(double(size))));
          total += p.back();
        }
        for (int k = starts[b]; k < starts[b + 1]; ++k)
          for (int i = 0; i < size; ++i)
            out[size_t(q) * h + head * size + i] +=
                p[k - starts[b]] / total * qkv[size_t(k) * 3 * h + 2 * h + head * size + i];
      }
  return out;
}

template <typename T>
Matrix reference(const EncoderShape& s, Matrix x, const std::vector<T>& matrices, const std::vector<float>& vectors,
                 const std::vector<int>& starts) {
  const MatrixLayout m(s);
  const VectorLayout v(s);
  const int rows = starts.back(), h = s.hidden, n = s.intermediate;
  for (int64_t l = 0; l < s.layers; ++l) {
    const auto w = [&](int64_t offset) { return matrices.data() + offset; };
    const auto p = [&](int64_t offset) { return vectors.data() + offset; };
    const Matrix qkv = product(x, w(m.qkv(l)), p(v.qkv_bias(l)), rows, 3 * h, h);
    const Matrix context = attend(qkv, starts, s.heads, s.head_size());
    Matrix y = product(context, w(m.attention_output(l)), p(v.attention_output_bias(l)), rows, h, h);
    add_norm(y, x, p(v.attention_gamma(l)), p(v.attention_beta(l)), s.epsilon, h);
    Matrix up = product(y, w(m.intermediate(l)), p(v.intermediate_bias(l)), rows, n, h);
    for (auto& u : up) u = 0.5 * u * (1 + std::erf(u / std::sqrt(2.0)));
    x = product(up, w(m.output(l)), p(v.output_bias(l)), rows, h, n);
    add_norm(x, y, p(v.output_gamma(l)), p(v.output_beta(l)), s.epsilon, h);
  }
  return x;
}

struct Case {
  const char* name;
  std::vector<int> lengths;
  int max_length;
};

template <typename T>
void run(const EncoderShape& s, const Case& c, bool check) {
  Random random(1);
  std::vector<T> matrices(MatrixLayout(s).size());
  for (auto& w : matrices) w = T(random(0.04f));
  std::vector<float> vectors(VectorLayout(s).size());
  const VectorLayout layout(s);
  for (auto& v : vectors) v = random(0.1f);
  for (int64_t l = 0; l < s.layers; ++l)
    for (int i = 0; i < s.hidden; ++i) {
      vectors[layout.attention_gamma(l) + i] += 1.f;
      vectors[layout.output_gamma(l) + i] += 1.f;
    }
  std::vector<int> starts{0};
  for (const int length : c.lengths) starts.push_back(starts.back() + length);
  const int tokens = starts.back(), batch = c.lengths.size(), capacity = batch * c.max_length, h = s.hidden;
  std::vector<T> hidden(size_t(capacity) * h, T(NAN));
  for (int i = 0; i < tokens * h; ++i) hidden[i] = T(random(1.f));

  const T* dm = upload(matrices);
  const float* dv = upload(vectors);
  const T* dx = upload(hidden);
  T* dy = upload(std::vector<T>(hidden.size(), T(NAN)));
  const int* dc = upload(starts);
  const int* dt = upload(std::vector<int>{tokens});
  void *folded, *workspace;
  CHECK(cudaMalloc(&folded, small_folded_bytes(s)));
  CHECK(cudaMalloc(&workspace, small_workspace_bytes(s, capacity)));
  CHECK(cudaMemset(workspace, 0xff, small_workspace_bytes(s, capacity)));  // NaN everywhere
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  CHECK(small_fold<T>(s, dm, dv, folded, stream));
  CHECK(cudaStreamSynchronize(stream));
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  CHECK(encoder_layers_small<T>(s, dx, nullptr, dm, dv, folded, dt, dc, batch, c.max_length, capacity, dy, workspace,
                                stream));
  const VectorLayout at(s);
  const AddNorm<T> last{
      dy,        nullptr, nullptr, dv + at.output_gamma(s.layers - 1), dv + at.output_beta(s.layers - 1),
      s.epsilon, dy,      nullptr};
  CHECK(add_norm(last, dt, capacity, h, stream));
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  CHECK(cudaGraphLaunch(exec, stream));
  CHECK(cudaStreamSynchronize(stream));
  std::vector<T> y(hidden.size()), again(hidden.size());
  CHECK(cudaMemcpy(y.data(), dy, y.size() * sizeof(T), cudaMemcpyDeviceToHost));

  double error = 0, worst = 0;
  if (check) {
    Matrix x(size_t(tokens) * h);
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(hidden[i]);
    const Matrix expected = reference(s, x, matrices, vectors, starts);
    double norm = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double d = float(y[i]) - expected[i];
      error += d * d, norm += expected[i] * expected[i], worst = std::fmax(worst, std::fabs(d));
    }
    error = std::sqrt(error / norm);
  }
  int bad = 0;
  for (size_t i = 0; i < y.size(); ++i) bad += std::isnan(float(y[i])) != (i >= size_t(tokens) * h);

  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 300; ++i) {
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaStreamSynchronize(stream));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 100) times.push_back(ms);
  }
  std::nth_element(times.begin(), times.begin() + 100, times.end());
  CHECK(cudaMemcpy(again.data(), dy, y.size() * sizeof(T), cudaMemcpyDeviceToHost));
  const bool same = memcmp(y.data(), again.data(), size_t(tokens) * h * sizeof(T)) == 0;
  std::printf("%-22s layers %2d tokens %4d/%4d rel %.2e worst %.1e bad %d same %d  %.4f ms\n", c.name, int(s.layers),
              tokens, capacity, error, worst, bad, same, times[100]);
  std::fflush(stdout);
}

int main() {
  const EncoderShape base{12, 768, 768, 12, 3072, Activation::gelu, false, 1e-12f, 0, false};
  EncoderShape two = base, mini = base;
  two.layers = 2;
  mini.layers = 2, mini.hidden = mini.embedding = 384, mini.intermediate = 1536;  // 12 heads of 32
  EncoderShape large = two;
  large.hidden = large.embedding = 1024, large.heads = 16, large.intermediate = 4096;
  run<__half>(two, {"fp16 1 token", {1}, 32}, true);
  run<__half>(two, {"fp16 7+26", {7, 26}, 32}, true);
  run<__nv_bfloat16>(two, {"bf16 7+26", {7, 26}, 32}, true);
  run<__half>(mini, {"fp16 mini", {33, 1, 64}, 64}, true);
  run<__half>(large, {"fp16 large", {33, 40}, 64}, true);
  run<__half>(two, {"fp16 130+1+69", {130, 1, 69}, 256}, true);
  const std::vector<int> eight{4, 31, 90, 44, 95, 121, 16, 47};
  const std::vector<int> many{4,  31, 26, 12, 31, 25, 16, 15, 4,  29, 6,  26, 31, 8, 14, 11,
                              21, 9,  6,  14, 25, 11, 10, 4,  30, 19, 12, 1,  15, 7, 4,  22};
  run<__half>(base, {"fp16 1x32", {32}, 32}, false);
  run<__half>(base, {"fp16 1x128", {128}, 128}, false);
  run<__half>(base, {"fp16 1x384", {384}, 384}, false);
  run<__half>(base, {"fp16 8x128", eight, 128}, false);
  run<__half>(base, {"fp16 32x32", many, 32}, false);
  run<__nv_bfloat16>(base, {"bf16 8x128", eight, 128}, false);
  return 0;
}
