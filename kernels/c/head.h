// What stands behind an encoder, as the steps that spec.json lists: computed in fp32, a row at a time.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "safetensors.h"

namespace efft::c {

enum class HeadOp { linear, layer_norm, mean, normalize, tanh, gelu, gelu_tanh, relu, silu, sigmoid };

struct HeadStep {
  HeadOp op;
  int64_t inputs = 0, outputs = 0;  // linear
  std::vector<float> weight, bias;  // linear: [outputs, inputs], [outputs] or none; layer_norm: gamma, beta
  float epsilon = 0;                // layer_norm
};

class Head {
 public:
  // steps: the list in spec.json. width: of the rows that the head reads. Throws Refused, or std::runtime_error with
  // one line that names the step.
  Head(const Json& steps, const TensorFile& tensors, int64_t width, bool over_tokens);

  int64_t outputs() const { return outputs_; }
  // Whether there is a row of results for each token.
  bool per_token() const { return per_token_; }

  // rows: the encoder's, of tokens or of sequences; used as scratch. Returns the results, in `rows` or in `other`.
  const std::vector<float>& run(std::vector<float>& rows, std::vector<float>& other, const int32_t* cu_seqlens,
                                int64_t sequences) const;

 private:
  void add(const Json& step, const TensorFile& tensors);

  std::vector<HeadStep> steps_;
  int64_t inputs_, outputs_;
  bool per_token_;
};

}  // namespace efft::c
