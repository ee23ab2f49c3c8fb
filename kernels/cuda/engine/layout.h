// Where everything of one call lies in one allocation. Made once for a model and a bucket, not at every call.
#pragma once

#include <cstddef>
#include <vector>

#include "efft/cuda/linear/arguments.cuh"
#include "efft/cuda/rows/unpad.cuh"
#include "model.h"

namespace efft::cuda {

class Layout {
 public:
  Layout(const DeviceInfo& device, const Model& model, const Bucket& bucket);

  const Path path;
  const bool eight_bits;   // see in_eight_bits
  const Program& program;  // the model's, with folded norms on the small path

  // Of the whole, and of what enqueue_front writes. Of all that follows the front, only the bucket's batch and length
  // decide where the front lies, so that it may be written before the number of tokens is known.
  size_t bytes() const { return bytes_; }
  size_t front_bytes() const { return front_bytes_; }

  // Of padding removal, in an allocation at `base`.
  Unpadded unpadded(void* base) const;
  const int* tokens(void* base) const { return unpadded(base).cu_seqlens + bucket_.batch; }

  // [tokens, width] of the model's type.
  void* value(void* base, int value) const { return at(base, values_ + value_at_[value]); }
  // Of a value whose rows' LayerNorm the products that read it do: what its writer tells, [tokens, parts], and what the
  // first reader makes of that, [tokens].
  Moments* moments(void* base, int value) const { return static_cast<Moments*>(at(base, moments_at(value))); }
  RowNorm* row_norms(void* base, int value) const {
    return static_cast<RowNorm*>(at(base, moments_at(value) + moments_bytes(value)));
  }
  // kMatmulWorkspaceBytes, on the library's path.
  void* scratch(void* base) const { return at(base, scratch_); }

  // What rows/positions.cuh makes of positions: angles of local or all other layers, by token; what there is by
  // distance; what words of each sequence are multiplied by; room for two tables of positions that are not prepared.
  float2* angles(void* base, bool local) const { return static_cast<float2*>(at(base, angles_[local])); }
  void* distances(void* base) const { return at(base, distances_); }
  float* word_factors(void* base) const { return static_cast<float*>(at(base, word_factors_)); }
  void* position_table(void* base, int which) const { return at(base, position_tables_[which]); }
  // Both halves of a gated product, [tokens, 2 * intermediate].
  void* halves(void* base) const { return at(base, halves_); }

  // Where eight_bits: two buffers for rows of products' inputs, as wide as the widest, and for what each row's numbers
  // stand for.
  void* operands(void* base, int buffer) const { return at(base, operands_[buffer]); }
  RowNorm* operand_scales(void* base, int buffer) const {
    return static_cast<RowNorm*>(at(base, operand_scales_[buffer]));
  }

  // Steps that enqueue_front does.
  int front_steps() const { return bucket_.attended ? 3 : 1; }

 private:
  static void* at(void* base, size_t offset) { return static_cast<char*>(base) + offset; }
  size_t rows_bytes(int value) const;
  size_t moments_bytes(int value) const;
  size_t value_bytes(int value) const;
  size_t moments_at(int value) const { return values_ + value_at_[value] + rows_bytes(value); }

  const Bucket bucket_;
  const size_t element_;
  size_t call_, cu_seqlens_, rows_, slots_, values_, halves_, scratch_, front_bytes_, bytes_;
  size_t angles_[2], distances_, word_factors_, position_tables_[2];
  size_t operands_[2] = {}, operand_scales_[2] = {};
  std::vector<int64_t> value_at_;
};

}  // namespace efft::cuda
