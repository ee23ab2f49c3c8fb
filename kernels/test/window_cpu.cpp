// Attention under a policy that ships nowhere: a window, and a bias by distance. It shows that a variant is a policy.
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors never leave this file
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

#include "../torch/tensors_cpu.h"
#include "efft/cpu/attention.h"

namespace efft {

namespace {

// Query i sees keys j with |i - j| <= kReach, whose logits lose kSlope |i - j|.
struct WindowScore {
  static constexpr bool kPositions = false;
  static constexpr int64_t kReach = 20;
  static constexpr float kSlope = 0.05f;

  static cpu::Span keys(const cpu::Attend& p, int64_t query, int64_t rows) {
    return {std::max<int64_t>(query - kReach, 0), std::min<int64_t>(query + rows + kReach, p.keys)};
  }
  static int64_t widest(const cpu::Attend& p, int64_t rows) { return std::min(p.keys, rows + 2 * kReach); }
  static void change(const cpu::Attend& p, int64_t query, cpu::Span span, float* logits) {
    for (int64_t key = span.first; key < span.last; ++key) {
      const int64_t distance = std::abs(query - key);
      float& logit = logits[key - span.first];
      logit = distance > kReach ? cpu::kUnseen : logit - kSlope * static_cast<float>(distance) / p.scale;
    }
  }
};

// One sequence: q, k and v fp32 [S, D], head size D even -> [S, D]. Queries are cut in two where `split` says, as tasks
// of a team are.
Tensor window_attention(const Tensor& q, const Tensor& k, const Tensor& v, int64_t split) {
  check_type("q", q, ScalarType::Float);
  check_shape("q", q, {kAnySize, kAnySize});
  check_shape("k", k, {q.size(0), q.size(1)});
  check_shape("v", v, {q.size(0), q.size(1)});
  const int64_t length = q.size(0), size = q.size(1);
  std::vector<float> qkv((3 * length + 1) * size + 64);
  float* starts[] = {qkv.data(), qkv.data() + length * size, qkv.data() + 2 * length * size};
  const Tensor given[] = {q, k, v};
  for (int i = 0; i < 3; ++i) {
    std::copy_n(floats(torch::stable::contiguous(given[i])), length * size, starts[i]);
  }
  Tensor out = torch::stable::new_empty(q, {length, size});
  std::vector<char> scratch(cpu::AttendScratch(length, size).bytes + 64);
  cpu::Attend a{starts[0], size, starts[1], starts[2], size, out.data_ptr(), size, split, length, size, 0, 0};
  a.scale = 1.0f / std::sqrt(static_cast<float>(size));
  for (const bool second : {false, true}) {
    a.first_query = second ? split : 0;
    a.queries = second ? length - split : split;
    a.query = starts[0] + a.first_query * size;
    a.out = static_cast<float*>(out.data_ptr()) + a.first_query * size;
    cpu::attend<float, WindowScore>(a, scratch.data());
  }
  return out;
}

}  // namespace

}  // namespace efft

STABLE_TORCH_LIBRARY_IMPL(efft_test, CPU, m) { m.impl("cpu_window_attention", TORCH_BOX(&efft::window_attention)); }
