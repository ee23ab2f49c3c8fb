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

#include "efft/cuda/linear_launch.cuh"

using namespace efft::cuda;

#define CHECK(call)                                                                        \
  do {                                                                                     \
    const cudaError_t error = (call);                                                      \
    if (error != cudaSuccess) {                                                            \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error)); \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (0)

bool profiling = false;  // no timing: a profiler counts two launches of each product

template <typename T>
T* upload(const std::vector<T>& host) {
  T* device;
  CHECK(cudaMalloc(&device, host.size() * sizeof(T)));
  CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

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
// NORMALISE: input norm, weights folded here; otherwise, with a residual, the residual is normalised.
template <typename T, typename Tile, bool NORMALISE>
void check(const char* name, int tokens, int capacity, int n, int k, ClusterShape cluster, Pointwise pointwise,
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
  const LinearArguments<T> a{{upload(bias), pointwise, with_residual ? upload(residual) : nullptr,
                              with_residual ? dnorms : nullptr, upload(gamma), upload(beta), dy},
                             {NORMALISE ? upload(sums) : nullptr, 1e-12f, drows},
                             dt,
                             n,
                             k,
                             nullptr,
                             0,
                             0,
                             0,
                             0};
  const auto launch = [&](int i) {
    CHECK((launch_linear<T, Tile, NORMALISE>(dx, dw[i % kWeights], a, capacity, cluster, Order::kOverlap, stream)));
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
  if (profiling) launch(1);
  CHECK(cudaDeviceSynchronize());
  const float us = profiling ? 0.f : graph_time(stream, 24, launch);
  CHECK(cudaMemcpy(again.data(), dy, y.size() * sizeof(T), cudaMemcpyDeviceToHost));
  const bool same = memcmp(y.data(), again.data(), size_t(tokens) * n * sizeof(T)) == 0;
  const double gflop = 2e-9 * tokens * n * k;
  std::printf("%-18s T%5d/%5d n%5d k%5d cl %dx%d rel %.2e worst %.1e norm %.0e bad %d %d %d  %7.2f us %5.0f TF/s\n",
              name, tokens, capacity, n, k, cluster.rows, cluster.columns, std::sqrt(error / norm), worst, norm_error,
              unwritten, overrun, !same, us, gflop / us * 1e3);
  std::fflush(stdout);
}

#define RUN(T, TILE, NORM, ...) check<T, TILE, NORM>(#TILE " " #NORM, __VA_ARGS__)

int main(int argc, char**) {
  const auto none = Pointwise::none, gelu = Pointwise::gelu;
  using LT8 = SmallLinearTile<64, 8>;
  using LT16 = SmallLinearTile<64, 16>;
  using LT24 = SmallLinearTile<64, 24>;
  using LT48 = SmallLinearTile<64, 48>;
  using LT64 = SmallLinearTile<64, 64>;
  using LT96 = SmallLinearTile<64, 96>;
  using LT128 = SmallLinearTile<64, 128>;
  using LT192 = SmallLinearTile<64, 192>;
  using LS8 = SmallLinearTile<32, 8>;
  using LS24 = SmallLinearTile<32, 24>;
  using LS32 = SmallLinearTile<32, 32>;
  // correctness at odd sizes
  RUN(half, LT48, false, 1, 32, 768, 768, ClusterShape{1, 1}, none, true);
  RUN(half, LT48, false, 33, 64, 768, 768, ClusterShape{1, 4}, none, true);
  RUN(half, LT128, false, 499, 1024, 2304, 768, ClusterShape{4, 1}, none, false);
  RUN(half, LT128, true, 499, 1024, 2304, 768, ClusterShape{2, 2}, none, false);
  RUN(__nv_bfloat16, LT192, true, 70, 128, 3072, 768, ClusterShape{2, 1}, gelu, false);
  RUN(half, LT48, false, 70, 128, 312, 1200, ClusterShape{1, 1}, gelu, false);
  profiling = argc > 1;
  using C = ClusterShape;
  for (const C c : {C{1, 1}, C{1, 2}, C{1, 4}}) {  // 1x32
    RUN(half, LS24, true, 32, 32, 2304, 768, c, none, false);
    RUN(half, LS8, false, 32, 32, 768, 768, c, none, true);
    RUN(half, LS24, true, 32, 32, 3072, 768, c, gelu, false);
    RUN(half, LS32, true, 32, 32, 3072, 768, c, gelu, false);
    RUN(half, LS8, false, 32, 32, 768, 3072, c, none, true);
  }
  for (const C c : {C{1, 1}, C{1, 2}}) {  // 1x128
    RUN(half, LT48, true, 128, 128, 2304, 768, c, none, false);
    RUN(half, LT16, false, 128, 128, 768, 768, c, none, true);
    RUN(half, LT16, false, 128, 128, 768, 3072, c, none, true);
  }
  for (const C c : {C{1, 1}, C{2, 1}}) {  // 8x128
    RUN(half, LT128, true, 448, 1024, 2304, 768, c, none, false);
    RUN(half, LT48, false, 448, 1024, 768, 768, c, none, true);
    RUN(half, LT192, true, 448, 1024, 3072, 768, c, gelu, false);
    RUN(half, LT48, false, 448, 1024, 768, 3072, c, none, true);
    RUN(half, LT96, false, 448, 1024, 768, 3072, c, none, true);
  }
  return 0;
}
