// The encoder's shape and the layout of its two weight arenas.
//
// This header is the contract between whoever packs the weights (the builder) and whoever reads them
// (the CPU and the CUDA engine). It knows neither torch nor CUDA: raw pointers and plain numbers only.
//
// All matrices of the encoder lie in one arena of the compute type, all vectors in one arena of fp32. Two
// tensors instead of two hundred keep the cost of an operator call independent of the number of layers.
#pragma once

#include <cstdint>

#include "efft/spec.h"

namespace efft {

struct EncoderShape {
  int64_t layers;
  int64_t hidden;        // H
  int64_t embedding;     // E; a projection E -> H follows the embedding norm where E != H (ELECTRA small)
  int64_t heads;         // head size = H / heads, even and at most 128
  int64_t intermediate;  // I
  Activation activation;
  bool pre_norm;  // LayerNorm before each block and once at the end, instead of after each block
  float epsilon;
  int64_t position_offset;  // row of the position table that a sequence's first token uses (RoBERTa: padding id + 1)
  bool count_positions;  // true: positions count a row's valid tokens (RoBERTa); false: they are column indices (BERT)

  bool projects() const { return embedding != hidden; }
  int64_t head_size() const { return hidden / heads; }
};

// Offsets, in elements, into the matrix arena. Every matrix is row-major [outputs, inputs], as torch.nn.Linear
// stores it. qkv stacks the query, key and value rows, each ordered by head.
struct MatrixLayout {
  explicit MatrixLayout(const EncoderShape& s) : s(s) {}

  int64_t projection() const { return 0; }                  // [H, E], present only where s.projects()
  int64_t qkv(int64_t layer) const { return base(layer); }  // [3H, H]
  int64_t attention_output(int64_t layer) const { return base(layer) + 3 * s.hidden * s.hidden; }  // [H, H]
  int64_t intermediate(int64_t layer) const { return base(layer) + 4 * s.hidden * s.hidden; }      // [I, H]
  int64_t output(int64_t layer) const { return intermediate(layer) + s.intermediate * s.hidden; }  // [H, I]
  int64_t size() const { return base(s.layers); }

 private:
  EncoderShape s;
  int64_t base(int64_t layer) const {
    const int64_t front = s.projects() ? s.hidden * s.embedding : 0;
    return front + layer * (4 * s.hidden * s.hidden + 2 * s.hidden * s.intermediate);
  }
};

// Offsets, in elements, into the vector arena (always fp32).
struct VectorLayout {
  explicit VectorLayout(const EncoderShape& s) : s(s) {}

  int64_t embedding_gamma() const { return 0; }                  // [E]
  int64_t embedding_beta() const { return s.embedding; }         // [E]
  int64_t projection_bias() const { return 2 * s.embedding; }    // [H], present only where s.projects()
  int64_t qkv_bias(int64_t layer) const { return base(layer); }  // [3H]
  int64_t attention_output_bias(int64_t layer) const { return base(layer) + 3 * s.hidden; }       // [H]
  int64_t attention_gamma(int64_t layer) const { return base(layer) + 4 * s.hidden; }             // [H]
  int64_t attention_beta(int64_t layer) const { return base(layer) + 5 * s.hidden; }              // [H]
  int64_t intermediate_bias(int64_t layer) const { return base(layer) + 6 * s.hidden; }           // [I]
  int64_t output_bias(int64_t layer) const { return intermediate_bias(layer) + s.intermediate; }  // [H]
  int64_t output_gamma(int64_t layer) const { return output_bias(layer) + s.hidden; }             // [H]
  int64_t output_beta(int64_t layer) const { return output_bias(layer) + 2 * s.hidden; }          // [H]
  int64_t final_gamma() const { return base(s.layers); }            // [H], present only where s.pre_norm
  int64_t final_beta() const { return base(s.layers) + s.hidden; }  // [H], present only where s.pre_norm
  int64_t size() const { return base(s.layers) + (s.pre_norm ? 2 * s.hidden : 0); }

 private:
  EncoderShape s;
  int64_t base(int64_t layer) const {
    const int64_t front = 2 * s.embedding + (s.projects() ? s.hidden : 0);
    return front + layer * (9 * s.hidden + s.intermediate);
  }
};

}  // namespace efft
