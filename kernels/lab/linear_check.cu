// Checks and times single tiles of the Hopper linear kernel against a double-precision product on the host.
// Build: nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Ikernels/include kernels/lab/linear_check.cu
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "efft/cuda/linear/few_launch.cuh"
#include "lab.cuh"

using namespace efft::cuda;

bool profiling = false;  // no timing: a profiler counts two launches of each product

template <typename T>
std::vector<T> random_vector(size_t size, float scale, int seed) {
  std::minstd_rand generator(seed);
  const float unit = scale * 2 * std::sqrt(3.f) / generator.max();  // uniform, of standard deviation `scale`
  std::vector<T> values(size);
  for (auto& v : values) v = T((static_cast<float>(generator()) - generator.max() / 2) * unit);
  return values;
}

double gelu_reference(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }

template <typename F>
float graph_time(cudaStream_t stream, int launches, F&& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < launches; ++i) launch(i);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  // The clock falls while the host works out references: bring it up again before measuring.
  for (const auto begin = std::chrono::steady_clock::now();
       std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(30);) {
    for (int i = 0; i < 20; ++i) CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaStreamSynchronize(stream));
  }
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 23; ++i) {
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaStreamSynchronize(stream));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    if (i >= 3) times.push_back(ms * 1000 / launches);
  }
  std::nth_element(times.begin(), times.begin() + 10, times.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return times[10];
}

// One product: error against double on sampled outputs, poison, repeatability, time in a chain of 24 with 8 weights.
// NORMALISE: input norm, weights folded here; otherwise, with a residual, the residual is normalised and the moments of
// the output are checked too.
template <typename T, typename Tile, bool NORMALISE>
void check(const char* name, int tokens, int capacity, int n, int k, int sharers, Pointwise pointwise,
           bool with_residual) {
  constexpr int kWeights = 8;
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  auto x = random_vector<T>(size_t(capacity) * k, 1.f, 1);
  for (int t = tokens; t < capacity; ++t)
    for (int i = 0; i < k; ++i) x[size_t(t) * k + i] = T(NAN);  // spare rows must not matter
  const auto w = random_vector<T>(size_t(n) * k, 1.f / std::sqrt(float(k)), 2);
  const auto bias = random_vector<float>(n, 1.f, 3);
  const auto residual = random_vector<T>(size_t(capacity) * n, 1.f, 6);
  const auto gamma = random_vector<float>(n, 1.f, 4), beta = random_vector<float>(n, 1.f, 5);
  const auto norms = random_vector<float>(size_t(capacity) * 2, 1.f, 7);
  std::vector<float> sums(n);
  constexpr int kPartWidth = 24;  // of the moments that come with x
  std::vector<Moments> moments;
  std::vector<double> scale(tokens, 1.), shift(tokens, 0.);
  if (NORMALISE) {
    for (int j = 0; j < n; ++j)
      for (int i = 0; i < k; ++i) sums[j] += float(w[size_t(j) * k + i]);
    for (int t = 0; t < tokens; ++t) {
      double mean = 0, squares = 0;
      for (int i = 0; i < k; ++i) mean += double(float(x[size_t(t) * k + i])) / k;
      for (int i = 0; i < k; ++i) squares += std::pow(float(x[size_t(t) * k + i]) - mean, 2);
      scale[t] = 1 / std::sqrt(squares / k + 1e-12);
      shift[t] = -mean * scale[t];
      for (int start = 0; start < k; start += kPartWidth) {
        Moments part{};
        for (int i = start; i < start + kPartWidth; ++i) part.mean += float(x[size_t(t) * k + i]) / kPartWidth;
        for (int i = start; i < start + kPartWidth; ++i)
          part.squares += std::pow(float(x[size_t(t) * k + i]) - part.mean, 2.f);
        moments.push_back(part);
      }
    }
  }
  T* dx = upload(x);
  T* dw[kWeights];
  for (auto& d : dw) d = upload(w);
  const std::vector<T> poison(size_t(capacity) * n, T(NAN));
  T* dy = upload(poison);
  int* dt = upload(std::vector<int>{tokens});
  RowNorm* drows = reinterpret_cast<RowNorm*>(upload(std::vector<float>(size_t(capacity) * 2, NAN)));
  const auto dnorms = reinterpret_cast<RowNorm*>(upload(norms));
  const int out_parts = n / Tile::kColumns;
  const bool with_moments = with_residual && n % Tile::kColumns == 0;
  auto* const dout = reinterpret_cast<Moments*>(upload(std::vector<float>(size_t(capacity) * n, NAN)));
  const LinearArguments<T> a{
      {upload(bias), pointwise, with_residual ? upload(residual) : nullptr, with_residual ? dnorms : nullptr,
       upload(gamma), upload(beta), dy, with_moments ? dout : nullptr},
      {NORMALISE ? upload(sums) : nullptr, 1e-12f, NORMALISE ? upload(moments) : nullptr, kPartWidth, drows},
      dt,
      n,
      k,
      0,
      0};
  const auto launch = [&](int i) {
    CHECK((launch_linear<T, Tile, NORMALISE>(dx, dw[i % kWeights], a, capacity, sharers, Order::kOverlap, stream)));
  };
  launch(0);
  CHECK(cudaStreamSynchronize(stream));
  std::vector<T> y(poison.size()), again(poison.size());
  CHECK(cudaMemcpy(y.data(), dy, y.size() * sizeof(T), cudaMemcpyDeviceToHost));
  double error = 0, norm = 0, worst = 0, norm_error = 0;
  int unwritten = 0, overrun = 0;
  for (int t = 0; t < capacity; ++t)
    for (int j = 0; j < n; ++j) {
      const bool nan = std::isnan(float(y[size_t(t) * n + j]));
      if (t < tokens)
        unwritten += nan;
      else
        overrun += !nan;
    }
  for (int s = 0; s < 4000; ++s) {
    const int t = s < tokens ? s : rand() % tokens, j = rand() % n;
    double v = bias[j] + shift[t] * sums[j];
    for (int i = 0; i < k; ++i) v += scale[t] * double(float(x[size_t(t) * k + i])) * float(w[size_t(j) * k + i]);
    if (pointwise == Pointwise::gelu) v = gelu_reference(v);
    if (with_residual)
      v += (double(float(residual[size_t(t) * n + j])) * norms[2 * t] + norms[2 * t + 1]) * gamma[j] + beta[j];
    const double d = float(y[size_t(t) * n + j]) - v;
    error += d * d, norm += v * v, worst = std::fmax(worst, std::fabs(d));
  }
  if (NORMALISE) {
    std::vector<RowNorm> rows(tokens);
    CHECK(cudaMemcpy(rows.data(), drows, rows.size() * 8, cudaMemcpyDeviceToHost));
    for (int t = 0; t < tokens; ++t) {
      const double d = std::fabs(rows[t].scale / scale[t] - 1) + std::fabs(rows[t].shift - shift[t]);
      norm_error = std::isnan(d) ? 1e9 : std::fmax(norm_error, d);
    }
  }
  if (with_moments) {
    std::vector<Moments> got(size_t(tokens) * out_parts);
    CHECK(cudaMemcpy(got.data(), dout, got.size() * sizeof(Moments), cudaMemcpyDeviceToHost));
    for (size_t i = 0; i < got.size(); ++i) {
      const T* const part = &y[i / out_parts * n + i % out_parts * Tile::kColumns];
      double mean = 0, squares = 0;
      for (int c = 0; c < Tile::kColumns; ++c) mean += double(float(part[c])) / Tile::kColumns;
      for (int c = 0; c < Tile::kColumns; ++c) squares += std::pow(float(part[c]) - mean, 2);
      const double d = std::fabs(got[i].mean - mean) + std::fabs(got[i].squares / squares - 1);
      norm_error = std::isnan(d) ? 1e9 : std::fmax(norm_error, d);
    }
  }
  if (profiling) launch(1);
  CHECK(cudaDeviceSynchronize());
  const float us = profiling ? 0.f : graph_time(stream, 24, launch);
  CHECK(cudaMemcpy(again.data(), dy, y.size() * sizeof(T), cudaMemcpyDeviceToHost));
  const bool same = memcmp(y.data(), again.data(), size_t(tokens) * n * sizeof(T)) == 0;
  const double gflop = 2e-9 * tokens * n * k;
  std::printf("%-30s T%5d/%5d n%5d k%5d sharers %d rel %.2e worst %.1e norm %.0e bad %d %d %d  %7.2f us %5.0f TF/s\n",
              name, tokens, capacity, n, k, sharers, std::sqrt(error / norm), worst, norm_error, unwritten, overrun,
              !same, us, gflop / us * 1e3);
  std::fflush(stdout);
}

// TILE in parentheses.
template <typename>
struct Unwrap;
template <typename Tile>
struct Unwrap<void(Tile)> {
  using type = Tile;
};
#define RUN(T, TILE, NORM, TOKENS, CAPACITY, N, K, SHARERS, ...) \
  check<T, typename Unwrap<void TILE>::type, NORM>(#TILE " " #NORM, TOKENS, CAPACITY, N, K, SHARERS, __VA_ARGS__)

int main(int argc, char**) {
  const auto none = Pointwise::none, gelu = Pointwise::gelu;
  profiling = argc > 1;
  // correctness at odd sizes
  RUN(half, (LinearTile<64, 48, 1, 2, 1, 1>), false, 1, 32, 768, 768, 1, none, true);
  RUN(half, (LinearTile<64, 48, 1, 2, 1, 1>), false, 33, 64, 768, 768, 1, none, true);
  RUN(half, (LinearTile<64, 192, 2, 1, 1, 1>), true, 499, 1024, 2304, 768, 2, none, false);
  RUN(__nv_bfloat16, (LinearTile<64, 96, 2, 1, 2, 2>), true, 70, 128, 3072, 768, 1, gelu, false);
  RUN(__nv_bfloat16, (LinearTile<64, 32, 1, 1, 4, 2>), false, 70, 128, 768, 3072, 1, none, true);
  RUN(half, (LinearTile<128, 96, 1, 1, 4, 1>), false, 300, 384, 768, 3072, 1, none, true);
  RUN(half, (LinearTile<32, 24, 1, 1, 4, 2>), false, 20, 32, 384, 384, 1, none, true);
  RUN(half, (LinearTile<32, 24, 1, 1, 4, 2>), false, 33, 64, 312, 1200, 1, none, true);
  RUN(half, (LinearTile<64, 48, 1, 2, 1, 1>), false, 70, 128, 312, 1200, 1, gelu, false);
  return 0;
}
