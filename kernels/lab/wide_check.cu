// Checks the wide linear kernel against an fp32 product on the device and times it in chains of 24, as the encoder
// launches it: programmatic dependent launch, a graph, other weights every time. With -DWITH_CUBLASLT (and
// kernels/cuda/{matmul,plan,cublaslt}.cu) beside cuBLASLt and the activation's own kernel.
// Build: nvcc -std=c++17 -O3 -gencode=arch=compute_90a,code=sm_90a -Ikernels/include kernels/lab/wide_check.cu
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "efft/cuda/linear/many_launch.cuh"
#include "lab.cuh"
#ifdef WITH_CUBLASLT
#include "../cuda/matmul.h"
#include "efft/cuda/rows/bias_activation.cuh"
#endif

using namespace efft::cuda;

constexpr int kWeights = 8, kChain = 24;

__device__ uint32_t hash(uint32_t x) {
  x = (x ^ x >> 16) * 0x7feb352du;
  x = (x ^ x >> 15) * 0x846ca68bu;
  return x ^ x >> 16;
}

// Sums of four uniform numbers, of standard deviation `scale`: near enough to activations.
template <typename T>
__global__ void fill(T* to, size_t count, float scale, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    const uint32_t h = hash(static_cast<uint32_t>(i) * 2654435761u + seed);
    const float sum = (h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24) - 510.f;
    to[i] = T(sum * scale / 147.8f);
  }
}

template <typename T>
T* random_array(size_t count, float scale, uint32_t seed) {
  T* array;
  CHECK(cudaMalloc(&array, count * sizeof(T)));
  fill<<<1024, 256>>>(array, count, scale, seed);
  return array;
}

// One thread an output, in fp32.
template <typename T>
__global__ void reference_kernel(const T* x, const T* w, const float* bias, const T* residual, float* y, int n, int k,
                                 int tokens, bool gelu) {
  __shared__ float xs[32][33], ws[32][33];
  const int row = blockIdx.y * 32 + threadIdx.y, column = blockIdx.x * 32 + threadIdx.x;
  float sum = 0;
  for (int i = 0; i < k; i += 32) {
    const int j = blockIdx.x * 32 + threadIdx.y, kk = i + threadIdx.x;
    xs[threadIdx.y][threadIdx.x] = row < tokens && kk < k ? float(x[size_t(row) * k + kk]) : 0.f;
    ws[threadIdx.y][threadIdx.x] = j < n && kk < k ? float(w[size_t(j) * k + kk]) : 0.f;
    __syncthreads();
    for (int q = 0; q < 32; ++q) sum += xs[threadIdx.y][q] * ws[threadIdx.x][q];
    __syncthreads();
  }
  if (row >= tokens || column >= n) return;
  sum += bias[column];
  if (gelu) sum = 0.5f * sum * (1 + erff(sum * 0.70710678f));
  if (residual != nullptr) sum += float(residual[size_t(row) * n + column]);
  y[size_t(row) * n + column] = sum;
}

struct Difference {
  double error, norm;
  unsigned worst, unwritten, overrun, changed;
};

template <typename T>
__global__ void compare(const T* y, const T* again, const float* reference, int tokens, int capacity, int n,
                        Difference* out) {
  double error = 0, norm = 0;
  float worst = 0;
  unsigned unwritten = 0, overrun = 0, changed = 0;
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < size_t(capacity) * n;
       i += size_t{gridDim.x} * blockDim.x) {
    const float v = float(y[i]);
    changed += reinterpret_cast<const uint16_t*>(y)[i] != reinterpret_cast<const uint16_t*>(again)[i];
    if (i >= size_t(tokens) * n) {
      overrun += !isnan(v);
      continue;
    }
    unwritten += isnan(v);
    const float d = fabsf(v - reference[i]);
    error += double(d) * d, norm += double(reference[i]) * reference[i], worst = fmaxf(worst, d);
  }
  atomicAdd(&out->error, error);
  atomicAdd(&out->norm, norm);
  atomicMax(&out->worst, __float_as_uint(worst));
  atomicAdd(&out->unwritten, unwritten);
  atomicAdd(&out->overrun, overrun);
  atomicAdd(&out->changed, changed);
}

template <typename F>
float chain_time(cudaStream_t stream, F&& launch) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kChain; ++i) launch(i);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (const auto begin = std::chrono::steady_clock::now();
       std::chrono::steady_clock::now() - begin < std::chrono::milliseconds(15);) {
    for (int i = 0; i < 5; ++i) CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaStreamSynchronize(stream));
  }
  cudaEvent_t start, stop;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&stop));
  std::vector<float> times;
  for (int i = 0; i < 15; ++i) {
    CHECK(cudaEventRecord(start, stream));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaEventRecord(stop, stream));
    CHECK(cudaStreamSynchronize(stream));
    float ms;
    CHECK(cudaEventElapsedTime(&ms, start, stop));
    times.push_back(ms * 1000 / kChain);
  }
  std::nth_element(times.begin(), times.begin() + 7, times.end());
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  return times[7];
}

// One product's operands and reference, for any number of variants.
template <typename T, Pointwise KIND>
struct Problem {
  int tokens, capacity, n, k;
  bool adds;
  cudaStream_t stream;
  T *x, *w[kWeights], *residual, *y, *again;
  float *bias, *reference;
  int* count;
  Difference* difference;

  Problem(int tokens, int capacity, int n, int k, bool adds)
      : tokens(tokens), capacity(capacity), n(n), k(k), adds(adds) {
    CHECK(cudaStreamCreate(&stream));
    x = random_array<T>(size_t(capacity) * k, 1.f, 1);
    CHECK(cudaMemset(x + size_t(tokens) * k, 0xff, size_t(capacity - tokens) * k * sizeof(T)));  // NaN
    for (auto& each : w) each = random_array<T>(size_t(n) * k, 1.f / std::sqrt(float(k)), 2);
    residual = random_array<T>(size_t(capacity) * n, 1.f, 3);
    bias = random_array<float>(n, 1.f, 4);
    y = random_array<T>(size_t(capacity) * n, 1.f, 5);
    again = random_array<T>(size_t(capacity) * n, 1.f, 6);
    CHECK(cudaMalloc(&reference, size_t(tokens) * n * 4));
    CHECK(cudaMalloc(&count, 4));
    CHECK(cudaMalloc(&difference, sizeof(Difference)));
    CHECK(cudaMemcpy(count, &tokens, 4, cudaMemcpyHostToDevice));
    reference_kernel<<<dim3((n + 31) / 32, (tokens + 31) / 32), dim3(32, 32)>>>(
        x, w[0], bias, adds ? residual : nullptr, reference, n, k, tokens, KIND == Pointwise::gelu);
    CHECK(cudaDeviceSynchronize());
    std::printf("-- T%d/%d n%d k%d%s\n", tokens, capacity, n, k, KIND == Pointwise::gelu ? " gelu" : adds ? " +" : "");
  }
  ~Problem() {
    for (auto* each : w) cudaFree(each);
    for (void* each : {(void*)x, (void*)residual, (void*)y, (void*)again, (void*)bias, (void*)reference, (void*)count,
                       (void*)difference})
      cudaFree(each);
  }

  template <typename F>
  void measure(const char* name, F&& launch) {
    const size_t bytes = size_t(capacity) * n * sizeof(T);
    CHECK(cudaMemset(y, 0xff, bytes));
    launch(0, y);
    CHECK(cudaStreamSynchronize(stream));
    const float us = chain_time(stream, [&](int i) { launch(i, again); });
    CHECK(cudaMemset(again, 0xff, bytes));
    launch(1, again);
    CHECK(cudaStreamSynchronize(stream));
    CHECK(cudaMemset(difference, 0, sizeof(Difference)));
    compare<<<512, 256>>>(y, again, reference, tokens, capacity, n, difference);
    Difference d;
    CHECK(cudaMemcpy(&d, difference, sizeof d, cudaMemcpyDeviceToHost));
    float worst;
    std::memcpy(&worst, &d.worst, 4);
    std::printf("%-22s rel %.1e worst %.0e bad %u %u %u %8.2f us %5.0f TF/s\n", name, std::sqrt(d.error / d.norm),
                worst, d.unwritten, d.overrun, d.changed, us, 2e-6 * tokens * n * k / us);
    std::fflush(stdout);
  }

  template <typename Tile>
  void wide() {
    LinearArguments<T> a{};
    a.epilogue.bias = bias, a.epilogue.residual = adds ? residual : nullptr, a.tokens = count, a.n = n, a.k = k;
    char name[64];
    std::snprintf(name, sizeof name, "%d%s", Tile::kColumns, Tile::kInTurns ? " in turns" : "");
    measure(name, [&](int i, T* out) {
      auto mine = a;
      mine.epilogue.out = out;
      CHECK((launch_wide<T, Tile, KIND, false>(x, w[i % kWeights], mine, capacity, Order::kOverlap, stream)));
    });
  }

#ifdef WITH_CUBLASLT
  void library() {
    static void* workspace = nullptr;
    if (workspace == nullptr) CHECK(cudaMalloc(&workspace, kMatmulWorkspaceBytes));
    const auto type = std::is_same_v<T, __half> ? DataType::fp16 : DataType::bf16;
    const Product product{type, false, capacity, n, k};
    const auto multiply = [&](int i, T* out) {
      Matmul::of_current_device().run(product, x, w[i % kWeights], adds ? residual : nullptr, out, workspace, stream);
    };
    measure("cuBLASLt", multiply);
    if (KIND == Pointwise::gelu)
      measure("cuBLASLt, GELU", [&](int i, T* out) {
        multiply(i, out);
        CHECK(bias_activation<T>(out, bias, KIND, out, count, capacity, n, stream));
      });
  }
#else
  void library() {}
#endif
};

template <int COLUMNS>
using Together = WideTile<COLUMNS, Warpgroups::together>;
template <int COLUMNS>
using Turns = WideTile<COLUMNS, Warpgroups::in_turns>;

int main() {
  constexpr auto none = Pointwise::none, gelu = Pointwise::gelu;
  {  // odd sizes
    Problem<__half, gelu> p(131, 300, 392, 200, false);
    p.wide<Turns<192>>();
    p.wide<Together<192>>();
  }
  {
    Problem<__half, none> p(517, 640, 776, 72, true);
    p.wide<Together<96>>();
    p.wide<Together<256>>();
    p.wide<Turns<192>>();
  }
  {
    Problem<__nv_bfloat16, gelu> p(300, 400, 776, 200, false);
    p.wide<Together<96>>();
    p.wide<Together<176>>();
    p.wide<Turns<192>>();
  }
  {
    Problem<__nv_bfloat16, none> p(517, 640, 776, 392, true);
    p.wide<Together<96>>();
    p.wide<Together<256>>();
  }
  for (const auto [tokens, capacity] : {std::pair{384, 384}, std::pair{499, 512}, std::pair{1000, 1024},
                                        std::pair{1683, 1792}, std::pair{6035, 6144}}) {
    const bool few = tokens < 1200, many = tokens > 4000;
    {
      Problem<__half, gelu> p(tokens, capacity, 3072, 768, false);
      p.library();
      if (few) p.wide<Together<96>>();
      if (tokens > 600) p.wide<Turns<192>>();
      if (tokens > 600) p.wide<Together<192>>();
      if (tokens > 600 && !many) p.wide<Together<176>>();
    }
    {
      Problem<__half, none> p(tokens, capacity, 2304, 768, false);
      p.library();
      if (few) p.wide<Together<96>>();
      if (tokens > 600) p.wide<Together<256>>();
      if (many) p.wide<Turns<192>>();
    }
    if (tokens < 600) continue;
    for (const int k : {768, 3072}) {
      Problem<__half, none> p(tokens, capacity, 768, k, true);
      p.library();
      p.wide<Together<96>>();
    }
  }
  return 0;
}
