// The types of numbers that weights, operands and results may have. Each of the four is a choice of its own: a product
// may take 8-bit operands, bf16 weights elsewhere, and add to a residual stream in fp32.
#pragma once

#include <cstdint>

namespace efft {

enum class Type : int32_t { f32, bf16, f16, s8, e4m3 };

constexpr int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::s8 || type == Type::e4m3 ? 1 : 2; }

}  // namespace efft
