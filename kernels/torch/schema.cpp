// The operators' schemas, defined once, in the CPU library: it is always loaded, the CUDA library only adds
// implementations for its dispatch key.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(efft, m) {
  // The whole encoder. ids, segments, mask: int64 [B, S]; a token is valid where mask != 0. Or packed, without pads:
  // ids and segments [T], one sequence behind the other, and mask [B + 1, S], in whose first column the index of each
  // sequence's first token stands, then T, and whose S is the longest sequence's length. Its other columns are not
  // read, so that they may all be the first (stride 0). On a GPU nobody looks whether that column ascends from 0 to T.
  // weights: the tensors of efft/weights.h: tables word [V, E], position [P, E], segment [G, E] in the compute type,
  // the matrix and the vector arena; or what prepare_weights made of them. spec: the text of efft/spec.h. output:
  // hidden
  // ([B, S, H], zeros on pads; of packed ids [T, H]) | first ([B, H]) | mean ([B, H]). The result has word's type.
  m.def("encode(Tensor ids, Tensor segments, Tensor mask, Tensor[] weights, str spec, str output) -> Tensor");
  // The weights in the form the device likes best, as many tensors in the same order; done once, when a model is
  // loaded. A tensor that stays as it is comes back itself.
  m.def("prepare_weights(Tensor(a)[] weights, str spec) -> Tensor(a)[]");
  // The list of efft/weights.h, a line per slot: name, kind, rows, columns, offset, layer, feed, fed_by.
  m.def("slots(str spec) -> str");
  // encode and prepare_weights as archives of 0.1.0 call them; positions count by the mask where count_positions.
  m.def(
      "encoder(Tensor ids, Tensor segments, Tensor mask, Tensor word, Tensor position, Tensor segment, "
      "Tensor matrices, Tensor vectors, int layers, int hidden, int heads, int intermediate, str activation, "
      "bool pre_norm, float epsilon, int position_offset, bool count_positions, str output) -> Tensor");
  m.def(
      "prepare(Tensor matrices, int layers, int hidden, int embedding, int intermediate, Tensor? vectors=None) -> "
      "Tensor");
  // What this build is and which instruction set it runs: one line of key=value pairs.
  m.def("describe() -> str");
}
