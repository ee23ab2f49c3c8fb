// The operators' schemas, defined once, in the CPU library: it is always loaded, the CUDA library only adds
// implementations for its dispatch key.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(efft, m) {
  // The whole encoder. ids, segments, mask: int64 [B, S]; a token is valid where mask != 0. word [V, E],
  // position [P, E], segment [G, E] in the compute type; matrices and vectors: the arenas of efft/encoder.h
  // (matrices may also be what efft::prepare returned). activation: gelu | gelu_tanh | relu. output: hidden
  // ([B, S, H], zeros on pads) | first ([B, H]) | mean ([B, H]). The result has word's type.
  m.def(
      "encoder(Tensor ids, Tensor segments, Tensor mask, Tensor word, Tensor position, Tensor segment, "
      "Tensor matrices, Tensor vectors, int layers, int hidden, int heads, int intermediate, str activation, "
      "bool pre_norm, float epsilon, int position_offset, bool count_positions, str output) -> Tensor");
  // The matrix arena in the form the device likes best; done once, when a model is loaded. vectors: the vector arena,
  // for devices that fold norms into the matrices behind them.
  m.def(
      "prepare(Tensor matrices, int layers, int hidden, int embedding, int intermediate, Tensor? vectors=None) -> "
      "Tensor");
  // cu_seqlens int32 [B + 1] and, for each packed token, its index in the flattened [B, S] (int32 [B * S], -1
  // behind the last valid one).
  m.def("unpad(Tensor mask) -> (Tensor cu_seqlens, Tensor rows)");
  // LayerNorm(word[id] + position[p] + segment[s]) for valid tokens only: [T, E].
  m.def(
      "embed_norm(Tensor ids, Tensor segments, Tensor mask, Tensor word, Tensor position, Tensor segment, "
      "Tensor gamma, Tensor beta, float epsilon, int position_offset, bool count_positions) -> Tensor");
  // Softmax((q + bq)(k + bk)^T / sqrt(d)) (v + bv) within each sequence. qkv [T, 3H], bias fp32 [3H] -> [T, H].
  m.def("attention(Tensor qkv, Tensor bias, Tensor cu_seqlens, int heads, int max_length) -> Tensor");
  // LayerNorm(x + bias + residual): [T, H]. overlap: on a GPU, begin while the kernel before still runs, as within the
  // encoder; bias, gamma and beta must then be older than that kernel.
  m.def(
      "add_norm(Tensor x, Tensor bias, Tensor residual, Tensor gamma, Tensor beta, float epsilon, "
      "bool overlap=False) -> Tensor");
  // activation(x + bias): [T, I].
  m.def("bias_activation(Tensor x, Tensor bias, str activation) -> Tensor");
  // What this build is and which instruction set it runs: one line of key=value pairs.
  m.def("describe() -> str");
}
