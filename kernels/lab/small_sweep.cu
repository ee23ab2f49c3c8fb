// Finds, for each product of a layer, the tile and cluster with which the whole chain of encoder_layers_small is
// fastest: one product's choice is varied at a time, in the chain itself, since hand-over to the neighbours is part of
// a kernel's cost. Build: as linear_check.cu, with -Ikernels --expt-relaxed-constexpr and
// kernels/cuda/{linear,linear_fp16,linear_bf16,attention}.cu.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "efft/cuda/linear.cuh"

namespace efft::cuda {
LinearChoice lab_choice[4];  // QKV, output, up, down
int product_index(int n, int k) { return k > 2 * n ? 3 : n == k ? 1 : n == 3 * k ? 0 : 2; }
inline LinearChoice lab_choose(int, int n, int k) { return lab_choice[product_index(n, k)]; }
}  // namespace efft::cuda

#define choose_linear lab_choose
#include "cuda/small.cu"
#undef choose_linear

using namespace efft;
using namespace efft::cuda;

#define CHECK(call)                                                                        \
  do {                                                                                     \
    const cudaError_t error = (call);                                                      \
    if (error != cudaSuccess) {                                                            \
      std::printf("%s:%d %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error)); \
      std::exit(1);                                                                        \
    }                                                                                      \
  } while (0)

template <typename T>
T* upload(const std::vector<T>& host) {
  T* device;
  CHECK(cudaMalloc(&device, host.size() * sizeof(T)));
  CHECK(cudaMemcpy(device, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice));
  return device;
}

const EncoderShape shape{12, 768, 768, 12, 3072, Activation::gelu, false, 1e-12f, 0, false};
const __half* matrices;
const float* vectors;
void* folded;
cudaStream_t stream;

struct Workload {
  const char* name;
  std::vector<int> lengths;
  int max_length;
  std::vector<LinearChoice> candidates[4];
};

struct Bench {
  int tokens, batch, max_length, capacity;
  const __half* x;
  __half* y;
  const int *cu_seqlens, *count;
  void* workspace;
  std::vector<__half> expected;

  explicit Bench(const Workload& w) : batch(w.lengths.size()), max_length(w.max_length) {
    std::vector<int> starts{0};
    for (int l : w.lengths) starts.push_back(starts.back() + l);
    tokens = starts.back(), capacity = std::min(batch * max_length, (tokens + 31) / 32 * 32);
    std::minstd_rand generator(1);
    std::vector<__half> hidden(size_t(capacity) * 768, __half(NAN));
    for (int i = 0; i < tokens * 768; ++i)
      hidden[i] = __half((float(generator()) / generator.max() - .5f) * 2 * std::sqrt(3.f));
    x = upload(hidden);
    y = upload(std::vector<__half>(hidden.size(), __half(NAN)));
    cu_seqlens = upload(starts), count = upload(std::vector<int>{tokens});
    CHECK(cudaMalloc(&workspace, small_workspace_bytes(shape, capacity)));
  }
  // ms; negative where the launch is refused. Prints where the result differs from the first one's.
  float time() {
    CHECK(cudaMemset(workspace, 0xff, small_workspace_bytes(shape, capacity)));
    CHECK(cudaMemset(y, 0xff, size_t(capacity) * 768 * 2));
    CHECK(cudaDeviceSynchronize());
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const cudaError_t error = encoder_layers_small<__half>(shape, x, matrices, vectors, folded, count, cu_seqlens,
                                                           batch, max_length, capacity, y, workspace, stream);
    const cudaError_t end = cudaStreamEndCapture(stream, &graph);
    if (error != cudaSuccess || end != cudaSuccess) {
      std::printf("refused: %s\n", cudaGetErrorString(error));
      cudaGetLastError();
      return -1;
    }
    CHECK(cudaGraphInstantiate(&exec, graph, 0));
    CHECK(cudaGraphLaunch(exec, stream));
    CHECK(cudaStreamSynchronize(stream));
    std::vector<__half> got(size_t(capacity) * 768), again(got.size());
    CHECK(cudaMemcpy(got.data(), y, got.size() * 2, cudaMemcpyDeviceToHost));
    if (expected.empty()) expected = got;
    double d2 = 0, n2 = 0;
    int bad = 0;
    for (size_t i = 0; i < got.size(); ++i) {
      const bool nan = std::isnan(float(got[i])), inside = i < size_t(tokens) * 768;
      bad += nan == inside;
      if (inside && !nan) {
        const double e = float(expected[i]), d = float(got[i]) - e;
        d2 += d * d, n2 += e * e;
      }
    }
    cudaEvent_t start, stop;
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&stop));
    std::vector<float> times;
    for (int i = 0; i < 55; ++i) {
      CHECK(cudaEventRecord(start, stream));
      CHECK(cudaGraphLaunch(exec, stream));
      CHECK(cudaEventRecord(stop, stream));
      CHECK(cudaStreamSynchronize(stream));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, start, stop));
      if (i >= 25) times.push_back(ms);
    }
    CHECK(cudaMemcpy(again.data(), y, got.size() * 2, cudaMemcpyDeviceToHost));
    const bool same = memcmp(got.data(), again.data(), size_t(tokens) * 768 * 2) == 0;
    const double difference = std::sqrt(d2 / n2);
    if (bad || !same || !(difference < 5e-3)) std::printf("WRONG bad %d same %d rel %.1e ", bad, same, difference);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    std::nth_element(times.begin(), times.begin() + 15, times.end());
    return times[15];
  }
};

void print(const LinearChoice& c) {
  std::printf("%dx%d", c.rows, c.columns);
  if (c.splits > 1) std::printf("s%d", c.splits);
  if (c.sharers > 1) std::printf("/%d", c.sharers);
}

void sweep(const Workload& w, int rounds = 1) {
  Bench bench(w);
  for (int p = 0; p < 4; ++p) {
    const int n[] = {2304, 768, 3072, 768}, k[] = {768, 768, 768, 3072};
    lab_choice[p] = choose_linear(bench.capacity, n[p], k[p]);
  }
  bench.time();
  float best = bench.time();
  std::printf("== %s %d tokens, before %.4f", w.name, bench.tokens, best);
  for (const LinearChoice& c : lab_choice) std::printf(" "), print(c);
  std::printf("\n");
  const char* const names[] = {"qkv ", "out ", "up  ", "down"};
  for (int round = 0; round < rounds; ++round)
    for (const int p : {3, 2, 0, 1}) {
      if (w.candidates[p].empty()) continue;
      LinearChoice chosen = lab_choice[p];
      std::printf("%s", names[p]);
      for (const LinearChoice& c : w.candidates[p]) {
        lab_choice[p] = c;
        std::printf("  "), print(c);
        const float t = bench.time();
        std::printf(" %.0f", t * 1000);
        if (t > 0 && t < best) best = t, chosen = c;
      }
      lab_choice[p] = chosen;
      std::printf(" -> "), print(chosen), std::printf(" %.1f\n", best * 1000);
      std::fflush(stdout);
    }
  std::printf("   best %.4f again %.4f\n", best, bench.time());
}

int main() {
  std::minstd_rand generator(1);
  const auto random = [&](float scale) {
    return (float(generator()) / generator.max() - .5f) * 2 * std::sqrt(3.f) * scale;
  };
  std::vector<__half> w(MatrixLayout(shape).size());
  std::vector<__half> some(1 << 20);
  for (auto& v : some) v = __half(random(.04f));
  for (size_t i = 0; i < w.size(); ++i) w[i] = some[(i * 2654435761u >> 7) % some.size()];
  std::vector<float> v(VectorLayout(shape).size());
  for (auto& e : v) e = random(.1f);
  const VectorLayout layout(shape);
  for (int64_t l = 0; l < shape.layers; ++l)
    for (int i = 0; i < shape.hidden; ++i)
      v[layout.attention_gamma(l) + i] += 1.f, v[layout.output_gamma(l) + i] += 1.f;
  matrices = upload(w), vectors = upload(v);
  CHECK(cudaMalloc(&folded, small_folded_bytes(shape)));
  CHECK(cudaStreamCreate(&stream));
  CHECK(small_fold<__half>(shape, matrices, vectors, folded, stream));
  const std::vector<int> eight{4, 31, 90, 44, 95, 121, 16, 47};
  using L = std::vector<LinearChoice>;
  const L usual{{64, 192, 1, 2}, {64, 192, 1, 1}, {64, 96, 1, 1}, {64, 64, 1, 1}, {64, 48, 1, 1}};
  sweep({"1x32", {32}, 32, {L{}, L{{32, 32, 4, 1}}, L{{32, 24, 1, 1}}, L{{32, 32, 4, 1}}}});
  sweep({"1x64",
         {64},
         64,
         {L{{64, 48, 1, 1}, {64, 32, 1, 1}, {64, 48, 4, 1}}, L{{64, 48, 4, 1}}, L{{64, 48, 1, 1}, {64, 64, 1, 1}},
          L{{64, 48, 4, 1}}}});
  sweep({"1x128", {128}, 128, {L{{64, 64, 1, 1}}, L{}, L{{64, 48, 1, 1}}, L{{64, 48, 4, 1}}}});
  for (int t : {192, 256, 384, 448, 512})
    sweep({t == 448 ? "8x128" : "one sequence",
           t == 448 ? eight : std::vector<int>{t},
           t == 448 ? 128 : t,
           {usual, L{{64, 48, 1, 1}, {64, 64, 1, 1}, {64, 96, 2, 1}, {64, 32, 1, 1}}, usual,
            L{{128, 96, 4, 1}, {128, 128, 4, 1}, {64, 96, 2, 1}, {64, 64, 1, 1}, {64, 32, 4, 1}}}});
  return 0;
}
