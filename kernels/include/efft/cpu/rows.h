// Work on single rows: LayerNorm, the embedding sum, activations, conversions.
#pragma once

#include "efft/cpu/kernels.h"
#include "efft/cpu/math.h"

namespace efft::cpu {
namespace {

// f(pointer of the element type), for whichever float type `type` names.
template <typename F>
inline void with_type(const void* data, Type type, F f) {
  if (type == Type::f32) f(static_cast<const float*>(data));
  if (type == Type::bf16) f(static_cast<const bf16*>(data));
  if (type == Type::f16) f(static_cast<const half*>(data));
}

template <typename F>
inline void with_type(void* data, Type type, F f) {
  if (type == Type::f32) f(static_cast<float*>(data));
  if (type == Type::bf16) f(static_cast<bf16*>(data));
  if (type == Type::f16) f(static_cast<half*>(data));
}

inline void store_unsigned(uint8_t* to, Vec value, int64_t count) {
#if defined(__AVX512F__)
  const __mmask16 mask = count >= kWidth ? 0xffff : first_lanes(count);
  _mm_mask_storeu_epi8(to, mask, _mm512_cvtusepi32_epi8(_mm512_cvtps_epu32(value)));
#else
  float lanes[kWidth];
  store(lanes, round_to_integer(max(min(value, splat(255.0f)), splat(0.0f))));
  for (int64_t i = 0; i < kWidth && i < count; ++i) to[i] = static_cast<uint8_t>(lanes[i]);
#endif
}

// Eight bits in given steps from a given zero; what lies outside becomes the first or the last of them.
template <typename From>
inline void quantise_in_steps(const From* row, const Results& to, int64_t width, uint8_t* out, RowScale* scale) {
  *scale = {to.step, to.step * to.zero};
  const Vec multiplier = splat(1.0f / to.step), zero = splat(to.zero);
  for (int64_t i = 0; i < width; i += kWidth) {
    const Vec value = load_some(row + i, width - i) * load_some(to.factors + i, width - i);
    store_unsigned(out + i, max(fma(value, multiplier, zero), splat(0.0f)), width - i);
  }
}

// Eight bits over the row's own range, which always includes zero, so that zero is exact; in steps where one is given.
template <typename From>
inline void quantise(const From* row, const Results& to, int64_t width, uint8_t* out, RowScale* scale) {
  if (to.step > 0.0f) return quantise_in_steps(row, to, width, out, scale);
  const float* const factors = to.factors;
  Vec low = splat(0.0f), high = splat(0.0f);
  for (int64_t i = 0; i < width; i += kWidth) {
    const Vec value = load_some(row + i, width - i) * load_some(factors + i, width - i);
    low = min(low, value);
    high = max(high, value);
  }
  const float lowest = -reduce_max(splat(0.0f) - low), range = reduce_max(high) - lowest;
  const float inverse = range > 0.0f ? 255.0f / range : 0.0f, step = range / 255.0f;
  const float zero = __builtin_rintf(-lowest * inverse);
  *scale = {step, step * zero};
  const Vec multiplier = splat(inverse), offset = splat(zero);
  for (int64_t i = 0; i < width; i += kWidth) {
    const Vec value = load_some(row + i, width - i) * load_some(factors + i, width - i);
    store_unsigned(out + i, max(fma(value, multiplier, offset), splat(0.0f)), width - i);
  }
}

inline void cast(const void* from, Type from_type, void* to, Type to_type, int64_t count) {
  with_type(from, from_type, [&](const auto* source) {
    with_type(to, to_type, [&](auto* target) {
      for (int64_t i = 0; i < count; i += kWidth) store_some(target + i, load_some(source + i, count - i), count - i);
    });
  });
}

inline void convert(const void* row, Type from, int64_t width, const Results& to) {
  if (to.values) cast(row, from, to.values, Type::f32, width);
  if (!to.operand) return;
  if (to.operand_type != Type::s8) return cast(row, from, to.operand, to.operand_type, width);
  with_type(row, from,
            [&](const auto* source) { quantise(source, to, width, static_cast<uint8_t*>(to.operand), to.scale); });
}

template <typename Operand>
inline void scale_and_shift(const float* row, const Norm& norm, float mean, float inverse, float* values,
                            Operand* operand) {
  const Vec centre = splat(mean), factor = splat(inverse);
  for (int64_t i = 0; i < norm.width; i += kWidth) {
    const int64_t left = norm.width - i;
    const Vec standard = (load_some(row + i, left) - centre) * factor;
    const Vec value = fma(standard, load_some(norm.gamma + i, left), load_some(norm.beta + i, left));
    if (values) store_some(values + i, value, left);
    if (operand) store_some(operand + i, value, left);
  }
}

inline float mean_of(const float* row, int64_t width) {
  Vec sum = splat(0.0f);
  for (int64_t i = 0; i < width; i += kWidth) sum = sum + load_some(row + i, width - i);
  return reduce_add(sum) / static_cast<float>(width);
}

inline void normalize(const float* row, const Norm& norm, const Results& to) {
  const float mean = norm.rms ? 0.0f : mean_of(row, norm.width);
  Vec squares = splat(0.0f);
  const int64_t whole = norm.width / kWidth * kWidth;
  for (int64_t i = 0; i < whole; i += kWidth) {
    const Vec difference = load(row + i) - splat(mean);
    squares = fma(difference, difference, squares);
  }
  float total = reduce_add(squares);
  for (int64_t i = whole; i < norm.width; ++i) total += (row[i] - mean) * (row[i] - mean);
  const float inverse = 1.0f / __builtin_sqrtf(total / static_cast<float>(norm.width) + norm.epsilon);
  if (to.operand && to.operand_type == Type::bf16) {
    scale_and_shift(row, norm, mean, inverse, to.values, static_cast<bf16*>(to.operand));
  } else if (to.operand && to.operand_type == Type::s8) {
    scale_and_shift<float>(row, norm, mean, inverse, to.values, nullptr);
    quantise(to.values, to, norm.width, static_cast<uint8_t*>(to.operand), to.scale);
  } else {
    scale_and_shift(row, norm, mean, inverse, to.values, static_cast<float*>(to.operand));
  }
}

template <typename Element>
inline void add_row(float* sum, const Element* row, int64_t width) {
  for (int64_t i = 0; i < width; i += kWidth) {
    store_some(sum + i, load_some(sum + i, width - i) + load_some(row + i, width - i), width - i);
  }
}

inline void embed(const Embedding& tables, const EmbeddingRow& row, const Norm& norm, const Results& to) {
  const int64_t width = tables.width;
  with_type(tables.word, tables.type, [&](const auto* words) {
    using Element = std::remove_reference_t<decltype(*words)>;
    const Element* word = words + row.word * width;
    const Vec factor = splat(row.factor);
    for (int64_t i = 0; i < width; i += kWidth) {
      store_some(to.values + i, load_some(word + i, width - i) * factor, width - i);
    }
    if (tables.position) add_row(to.values, static_cast<Element*>(tables.position) + row.position * width, width);
    if (tables.segment) add_row(to.values, static_cast<Element*>(tables.segment) + row.segment * width, width);
  });
  if (norm.gamma) return normalize(to.values, norm, to);
  Results operand = to;
  operand.values = nullptr;
  convert(to.values, Type::f32, width, operand);
}

// Two vectors of elements that make pairs, turned.
template <typename Element>
inline void turn(Element* first, Element* second, const float* cosines, const float* sines, int64_t count) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const int64_t left = count - i;
    const Vec x = load_some(first + i, left), y = load_some(second + i, left);
    const Vec cosine = load_some(cosines + i, left), sine = load_some(sines + i, left);
    store_some(first + i, x * cosine - y * sine, left);
    store_some(second + i, fma(x, sine, y * cosine), left);
  }
}

template <typename Element>
inline void turn_neighbours(Element* pairs, const float* cosines, const float* sines, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float x = to_float(pairs[2 * i]), y = to_float(pairs[2 * i + 1]);
    from_float(x * cosines[i] - y * sines[i], pairs + 2 * i);
    from_float(x * sines[i] + y * cosines[i], pairs + 2 * i + 1);
  }
}

inline void rotate(void* row, Type type, const Rotation& r) {
  with_type(row, type, [&](auto* elements) {
    for (int64_t h = 0; h < r.heads; ++h) {
      auto* head = elements + h * r.head_size;
      if (r.interleaved) {
        turn_neighbours(head, r.cosines, r.sines, r.pairs);
      } else {
        turn(head, head + r.pairs, r.cosines, r.sines, r.pairs);
      }
    }
  });
}

template <typename Element, typename F>
inline void bias_step_row(const Element* row, const float* bias, int64_t width, Element* out, F step) {
  for (int64_t i = 0; i < width; i += kWidth) {
    const int64_t left = width - i;
    store_some(out + i, step(load_some(row + i, left) + load_some(bias + i, left)), left);
  }
}

inline void bias_step(const void* row, Type type, const float* bias, Pointwise step, int64_t width, void* out) {
  with_type(row, type, [&](const auto* from) {
    auto* to = static_cast<std::remove_const_t<std::remove_pointer_t<decltype(from)>>*>(out);
    with_step<Precision::full>(step, [&](auto function) { bias_step_row(from, bias, width, to, function); });
  });
}

}  // namespace
}  // namespace efft::cpu
