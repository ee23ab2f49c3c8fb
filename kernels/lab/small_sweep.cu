// Finds, for each product of a layer, the tile and cluster with which the whole chain of encoder_layers_small is
// fastest: one product's choice is varied at a time, in the chain itself, since hand-over to the neighbours is part of
// a kernel's cost. Build: as linear_check.cu, with -Ikernels --expt-relaxed-constexpr and
// kernels/cuda/{linear,linear_fp16,linear_bf16,wide,wide_fp16,wide_bf16,attention}.cu.
#include <cuda_fp16.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "efft/cuda/attention/attention.cuh"
#include "efft/cuda/linear/fold.cuh"
#include "efft/cuda/linear/few.cuh"
#include "efft/cuda/linear/small.cuh"
#include "efft/cuda/linear/many.cuh"
#include "lab.cuh"

namespace efft::cuda {
OwnChoice lab_choice[4];  // QKV, output, up, down
int product_index(int n, int k) { return k > 2 * n ? 3 : n == k ? 1 : n == 3 * k ? 0 : 2; }
inline OwnChoice lab_choose(int, int n, int k, Pointwise, bool) { return lab_choice[product_index(n, k)]; }

int lab_times[5] = {1, 1, 1, 1, 1};  // each product and attention is launched so often
template <typename Launch>
cudaError_t lab_repeat(int index, Launch&& launch) {
  cudaError_t error = cudaSuccess;
  for (int i = 0; i < lab_times[index] && error == cudaSuccess; ++i) error = launch();
  return error;
}
template <typename T, typename... Rest>
cudaError_t lab_any_linear(const T* x, const T* w, const LinearArguments<T>& a, const Rest&... rest) {
  return lab_repeat(product_index(a.n, a.k), [&] { return any_linear<T>(x, w, a, rest...); });
}
template <typename T, typename... Rest>
cudaError_t lab_attention(const Rest&... rest) {
  return lab_repeat(4, [&] { return attention<T>(rest...); });
}
}  // namespace efft::cuda

#define choose_own lab_choose
#define any_linear lab_any_linear
#define attention lab_attention
#include "cuda/small.cu"
#undef choose_own
#undef any_linear
#undef attention

using namespace efft;
using namespace efft::cuda;

const EncoderShape shape{12, 768, 768, 12, 3072, Activation::gelu, false, 1e-12f, 0, false};
const __half* matrices;
const float* vectors;
void* folded;
cudaStream_t stream;

float median(std::vector<float>& values) {
  std::nth_element(values.begin(), values.begin() + values.size() / 2, values.end());
  return values[values.size() / 2];
}

struct Workload {
  const char* name;
  std::vector<int> lengths;
  int max_length;
  std::vector<OwnChoice> candidates[4];
  int capacity = 0;  // at least; beyond the tokens' number, as where nobody counted them
};

struct Bench {
  int tokens, batch, max_length, capacity;
  const __half* x;
  __half* y;
  const int *cu_seqlens, *count;
  void* workspace;
  size_t workspace_bytes;
  std::vector<__half> expected;
  bool checks = true;

  explicit Bench(const Workload& w) : batch(w.lengths.size()), max_length(w.max_length) {
    std::vector<int> starts{0};
    for (int l : w.lengths) starts.push_back(starts.back() + l);
    tokens = starts.back();
    capacity = std::max(w.capacity, std::min(batch * max_length, (tokens + 31) / 32 * 32));
    std::minstd_rand generator(1);
    std::vector<__half> hidden(size_t(capacity) * 768, __half(NAN));
    for (int i = 0; i < tokens * 768; ++i)
      hidden[i] = __half((float(generator()) / generator.max() - .5f) * 2 * std::sqrt(3.f));
    x = upload(hidden);
    y = upload(std::vector<__half>(hidden.size(), __half(NAN)));
    cu_seqlens = upload(starts), count = upload(std::vector<int>{tokens});
    workspace_bytes = small_workspace_bytes(shape, capacity);
    CHECK(cudaMalloc(&workspace, workspace_bytes));
  }
  // ms; negative where the launch is refused. Prints where the result differs from the first one's.
  float time() {
    CHECK(cudaMemset(workspace, 0xff, workspace_bytes));
    CHECK(cudaMemset(y, 0xff, size_t(capacity) * 768 * 2));
    CHECK(cudaDeviceSynchronize());
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    const cudaError_t error =
        encoder_layers_small<__half>(shape, x, nullptr, matrices, vectors, folded, count, cu_seqlens, batch, max_length,
                                     capacity, y, workspace, stream);
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
    if (checks && (bad || !same || !(difference < 5e-3)))
      std::printf("WRONG bad %d same %d rel %.1e ", bad, same, difference);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    return median(times);
  }
};

void print(const OwnChoice& choice) {
  const LinearChoice& c = choice.tile;
  constexpr int kWide[] = {0, 96, 176, 192, 256, 192};
  if (choice.wide != WideCut::none) {
    std::printf("wide%d", kWide[static_cast<int>(choice.wide)]);
    return;
  }
  std::printf("%dx%d", c.rows, c.columns);
  if (c.splits > 1) std::printf("s%d", c.splits);
  if (c.sharers > 1) std::printf("/%d", c.sharers);
}

void sweep(const Workload& w, int rounds = 1) {
  Bench bench(w);
  for (int p = 0; p < 4; ++p) {
    const int n[] = {2304, 768, 3072, 768}, k[] = {768, 768, 768, 3072};
    lab_choice[p] = {WideCut::none, choose_linear(expected_tokens(bench.capacity), n[p], k[p])};
  }
  bench.time();
  float best = bench.time();
  std::printf("== %s %d tokens, before %.4f", w.name, bench.tokens, best);
  for (const OwnChoice& c : lab_choice) std::printf(" "), print(c);
  std::printf("\n");
  const char* const names[] = {"qkv ", "out ", "up  ", "down", "attention"};
  for (int round = 0; round < rounds; ++round)
    for (const int p : {3, 2, 0, 1}) {
      if (w.candidates[p].empty()) continue;
      OwnChoice chosen = lab_choice[p];
      std::printf("%s", names[p]);
      for (const OwnChoice& c : w.candidates[p]) {
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
  std::printf("   best %.4f again %.4f; us a launch less, more:", best, bench.time());
  bench.checks = false;
  for (int p = 0; p < 5; ++p) {
    lab_times[p] = 0;
    const float without = bench.time();
    lab_times[p] = 2;
    const float with = bench.time();
    lab_times[p] = 1;
    std::printf(" %s %.2f %.2f", names[p], (best - without) * 1000 / 12, (with - best) * 1000 / 12);
  }
  bench.checks = true;
  std::printf("\n   ");
  for (int p = 0; p < 4; ++p) {
    const int n[] = {2304, 768, 3072, 768}, k[] = {768, 768, 768, 3072};
    lab_choice[p] =
        choose_own(expected_tokens(bench.capacity), n[p], k[p], p == 2 ? Pointwise::gelu : Pointwise::none, p % 2 == 1);
  }
  std::printf("as built %.4f", bench.time());
  for (const OwnChoice& c : lab_choice) std::printf(" "), print(c);
  std::printf("\n");
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
  using L = std::vector<OwnChoice>;
  const auto tile = [](int rows, int columns, int splits = 1, int sharers = 1) {
    return OwnChoice{WideCut::none, {rows, columns, splits, sharers}};
  };
  const auto wide = [](WideCut cut) { return OwnChoice{cut, {}}; };
  const OwnChoice wide96 = wide(WideCut::columns96), wide256 = wide(WideCut::columns256);
  const OwnChoice wide176 = wide(WideCut::columns176), wide192 = wide(WideCut::columns192);
  sweep({"1x32", {32}, 32, {L{}, L{tile(32, 48, 8), tile(32, 32, 4)}, L{}, L{tile(32, 32, 4), tile(32, 48, 8)}}});
  for (int t : {64, 128, 256})
    sweep({"one sequence",
           {t},
           t,
           {L{}, L{tile(64, 96, 8)}, L{},
            L{tile(64, 96, 8), tile(64, 96, 4), tile(64, 96, 4, 2), tile(64, 48, 4, 2), tile(64, 32, 4, 2),
              tile(128, 96, 4)}}});
  for (int t : {384, 448, 499, 512})
    sweep({t == 448 ? "8x128" : "one sequence",
           t == 448 ? eight : std::vector<int>{t},
           t == 448 ? 128 : t,
           {L{wide96}, L{tile(64, 64), tile(64, 96, 2, 2), tile(64, 96, 1, 2), tile(64, 64, 1, 2), tile(64, 48, 1, 2)},
            L{wide96},
            L{tile(128, 96, 4), tile(64, 96, 2), tile(64, 96, 2, 2), tile(64, 96, 2, 4), tile(128, 96, 2),
              tile(128, 96, 2, 2), tile(128, 96, 4, 2), tile(128, 128, 4), tile(128, 128, 4, 2), tile(64, 128, 2),
              tile(64, 128, 2, 2), tile(64, 128, 2, 4), tile(64, 192, 4), tile(64, 192, 4, 2), tile(64, 96, 4, 2)}}},
          2);
  [[maybe_unused]] const auto uniform = [&](int batch, int length, int sum) {
    std::vector<int> lengths(batch, sum / batch);
    for (int i = 0; i < batch; ++i) {  // pairs, one as much longer as the other is shorter
      const int away = std::min(sum / batch - 1, length - sum / batch) * (i / 2) / (batch / 2);
      lengths[i] += i % 2 == 0 ? away : -away;
    }
    lengths[1] += sum % batch;
    return lengths;
  };
  [[maybe_unused]] const auto large = [&](const char* name, int batch, int length, int sum, int capacity) {
    sweep({name,
           uniform(batch, length, sum),
           length,
           {L{tile(64, 192, 1, 2), wide96, wide256}, L{tile(64, 64), tile(64, 96, 2), wide96},
            L{tile(64, 192, 1, 2), wide96, wide176, wide192}, L{tile(64, 96, 2), tile(64, 192), wide96}},
           capacity});
  };
  return 0;
}
