// The schemas of the operators that only tests use, defined once, in the CPU's test library: libefft_test_cuda.so adds
// implementations for its dispatch key.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(efft_test, m) {
  // cu_seqlens int32 [B + 1] and, for each packed token, its index in the flattened [B, S] (int32 [B * S], -1
  // behind the last valid one).
  m.def("unpad(Tensor mask) -> (Tensor cu_seqlens, Tensor rows)");
  // LayerNorm(word[id] + position[p] + segment[s]) for valid tokens only: [T, E]. spec says the epsilon and
  // how positions count.
  m.def(
      "embed_norm(Tensor ids, Tensor segments, Tensor mask, Tensor word, Tensor position, Tensor segment, "
      "Tensor gamma, Tensor beta, str spec) -> Tensor");
  // Softmax((q + bq)(k + bk)^T / sqrt(d)) (v + bv) within each sequence. qkv [T, 3H], bias fp32 [3H] -> [T, H].
  m.def("attention(Tensor qkv, Tensor bias, Tensor cu_seqlens, int heads, int max_length) -> Tensor");
  // Attention of one head of one sequence under a policy of the tests' own: keys at a distance of more than 20 are not
  // seen, 0.05 is taken off the logit per step of distance. fp32 [S, D] -> [S, D]; CPU only.
  m.def("cpu_window_attention(Tensor q, Tensor k, Tensor v, int split) -> Tensor");
  // LayerNorm(x + bias + residual): [T, H]. overlap: on a GPU, begin while the kernel before still runs, as within the
  // encoder; bias, gamma and beta must then be older than that kernel.
  m.def(
      "add_norm(Tensor x, Tensor bias, Tensor residual, Tensor gamma, Tensor beta, float epsilon, "
      "bool overlap=False) -> Tensor");
  // Bytes of all threads' workspaces of this library, after those unused for `seconds` have been released. CPU only.
  m.def("workspaces(float seconds) -> int");
  // A spec's canonical text.
  m.def("canonical(str spec) -> str");
  // bucket_of of every distance from -farthest to farthest.
  m.def("buckets(str spec, int farthest) -> int[]");
  // The steps of a spec's program, a line each (efft/program.h); rewrite: none | first_rows | folded.
  m.def("program(str spec, str rewrite) -> str");
  // Where its values lie, [values + 1], the last number being all bytes; each takes its width in bytes.
  m.def("places(str spec, str rewrite, bool shared) -> int[]");
  // activation(x + bias): [T, I].
  m.def("bias_activation(Tensor x, Tensor bias, str activation) -> Tensor");
}
