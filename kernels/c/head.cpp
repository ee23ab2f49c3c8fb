#include "head.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace efft::c {

namespace {

struct Name {
  const char* text;
  HeadOp op;
};
constexpr Name kNames[] = {
    {"linear", HeadOp::linear}, {"layer_norm", HeadOp::layer_norm},
    {"mean", HeadOp::mean},     {"normalize", HeadOp::normalize},
    {"tanh", HeadOp::tanh},     {"gelu", HeadOp::gelu},
    {"relu", HeadOp::relu},     {"gelu_tanh", HeadOp::gelu_tanh},
    {"silu", HeadOp::silu},     {"sigmoid", HeadOp::sigmoid},
};

const std::string& text_of(const Json& step, const char* key) {
  const Json* found = step.find(key);
  if (found == nullptr || !found->is(Json::Kind::text)) throw std::runtime_error(std::string(key) + " is missing");
  return found->text;
}

HeadOp op_of(const std::string& name) {
  for (const Name& known : kNames) {
    if (name == known.text) return known.op;
  }
  throw std::runtime_error("op " + name.substr(0, 40) + " is unknown to this library; is the folder of a later one?");
}

std::vector<float> vector_of(const TensorFile& tensors, const std::string& name, int64_t size) {
  if (tensors.entry(name).elements != size)
    throw std::runtime_error(name + " has " + std::to_string(tensors.entry(name).elements) + " elements, not " +
                             std::to_string(size));
  return tensors.floats(name);
}

// Sixteen sums side by side: compilers turn them into whole registers without being allowed to reorder one sum.
float dot(const float* a, const float* b, int64_t size) {
  constexpr int64_t lanes = 16;
  float sums[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= size; i += lanes) {
    for (int64_t lane = 0; lane < lanes; ++lane) sums[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0;
  for (; i < size; ++i) sum += a[i] * b[i];
  for (const float lane : sums) sum += lane;
  return sum;
}

void linear(const HeadStep& step, const std::vector<float>& from, std::vector<float>& to) {
  const int64_t rows = static_cast<int64_t>(from.size()) / step.inputs;
  to.resize(static_cast<size_t>(rows * step.outputs));
  // A weight is read once for all rows.
  for (int64_t o = 0; o < step.outputs; ++o) {
    const float* weight = step.weight.data() + o * step.inputs;
    const float bias = step.bias.empty() ? 0.0f : step.bias[static_cast<size_t>(o)];
    for (int64_t r = 0; r < rows; ++r)
      to[static_cast<size_t>(r * step.outputs + o)] = dot(from.data() + r * step.inputs, weight, step.inputs) + bias;
  }
}

void layer_norm(const HeadStep& step, std::vector<float>& rows, int64_t width) {
  for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(width)) {
    float* row = rows.data() + at;
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < width; ++i) sum += row[i];
    const double mean = sum / static_cast<double>(width);
    for (int64_t i = 0; i < width; ++i) squares += (row[i] - mean) * (row[i] - mean);
    const double factor = 1.0 / std::sqrt(squares / static_cast<double>(width) + step.epsilon);
    for (int64_t i = 0; i < width; ++i) {
      const float beta = step.bias.empty() ? 0.0f : step.bias[static_cast<size_t>(i)];
      row[i] = static_cast<float>((row[i] - mean) * factor) * step.weight[static_cast<size_t>(i)] + beta;
    }
  }
}

// To length 1, as torch.nn.functional.normalize does.
void normalize(std::vector<float>& rows, int64_t width) {
  for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(width)) {
    double squares = 0;
    for (int64_t i = 0; i < width; ++i) squares += double{rows[at + i]} * rows[at + i];
    const float length = std::max(static_cast<float>(std::sqrt(squares)), 1e-12f);
    for (int64_t i = 0; i < width; ++i) rows[at + i] /= length;
  }
}

void mean(const std::vector<float>& from, std::vector<float>& to, int64_t width, const int32_t* cu_seqlens,
          int64_t sequences) {
  to.assign(static_cast<size_t>(sequences * width), 0.0f);
  std::vector<double> sum(static_cast<size_t>(width));  // in fp32 a long text's rows would lose digits
  for (int64_t s = 0; s < sequences; ++s) {
    sum.assign(sum.size(), 0.0);
    for (int64_t t = cu_seqlens[s]; t < cu_seqlens[s + 1]; ++t) {
      for (int64_t i = 0; i < width; ++i) sum[static_cast<size_t>(i)] += from[static_cast<size_t>(t * width + i)];
    }
    const double count = std::max(1, cu_seqlens[s + 1] - cu_seqlens[s]);
    float* row = to.data() + s * width;
    for (int64_t i = 0; i < width; ++i) row[i] = static_cast<float>(sum[static_cast<size_t>(i)] / count);
  }
}

float activated(HeadOp op, float x) {
  switch (op) {
    case HeadOp::tanh:
      return std::tanh(x);
    case HeadOp::gelu:
      return 0.5f * x * (1.0f + std::erf(x * 0.70710678f));
    case HeadOp::gelu_tanh:
      return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case HeadOp::relu:
      return x > 0 ? x : 0.0f;
    case HeadOp::silu:
      return x / (1.0f + std::exp(-x));
    default:
      return 1.0f / (1.0f + std::exp(-x));
  }
}

}  // namespace

Head::Head(const Json& steps, const TensorFile& tensors, int64_t width, bool over_tokens)
    : inputs_(width), outputs_(width), per_token_(over_tokens) {
  for (size_t i = 0; i < steps.list.size(); ++i) {
    try {
      add(steps.list[i], tensors);
    } catch (const std::runtime_error& error) {
      throw std::runtime_error("head step " + std::to_string(i) + ": " + error.what());
    }
  }
}

void Head::add(const Json& json, const TensorFile& tensors) {
  HeadStep step{op_of(text_of(json, "op"))};
  const bool has_bias = json.find("bias") != nullptr;
  if (step.op == HeadOp::linear) {
    const std::string& name = text_of(json, "weight");
    const auto& shape = tensors.entry(name).shape;
    if (shape.size() != 2 || shape[0] < 1 || shape[1] != outputs_)
      throw std::runtime_error(name + " is no matrix for rows of " + std::to_string(outputs_));
    step.inputs = shape[1];
    step.outputs = outputs_ = shape[0];
    step.weight = tensors.floats(name);
  } else if (step.op == HeadOp::layer_norm) {
    step.weight = vector_of(tensors, text_of(json, "weight"), outputs_);
    const Json* epsilon = json.find("epsilon");
    if (epsilon == nullptr || !epsilon->is(Json::Kind::number) || !(epsilon->number >= 0))
      throw std::runtime_error("epsilon is missing");
    step.epsilon = static_cast<float>(epsilon->number);
  } else if (step.op == HeadOp::mean) {
    if (!per_token_) throw std::runtime_error("nothing is left to take the mean of");
    per_token_ = false;
  }
  if (has_bias && !step.weight.empty()) step.bias = vector_of(tensors, text_of(json, "bias"), outputs_);
  steps_.push_back(std::move(step));
}

const std::vector<float>& Head::run(std::vector<float>& rows, std::vector<float>& other, const int32_t* cu_seqlens,
                                    int64_t sequences) const {
  std::vector<float>*now = &rows, *next = &other;
  int64_t width = inputs_;
  for (const HeadStep& step : steps_) {
    if (step.op == HeadOp::linear) {
      linear(step, *now, *next);
      width = step.outputs;
      std::swap(now, next);
    } else if (step.op == HeadOp::mean) {
      mean(*now, *next, width, cu_seqlens, sequences);
      std::swap(now, next);
    } else if (step.op == HeadOp::layer_norm) {
      layer_norm(step, *now, width);
    } else if (step.op == HeadOp::normalize) {
      normalize(*now, width);
    } else {
      for (float& value : *now) value = activated(step.op, value);
    }
  }
  return *now;
}

}  // namespace efft::c
