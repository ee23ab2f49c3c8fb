// Products of eight-bit operands and the rows that make these, as operators of their own, for tests only.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../torch/tensors_cuda.h"
#include "efft/cuda/linear/eight.cuh"
#include "efft/cuda/rows/quantise.cuh"

namespace efft::cuda {
namespace {

template <typename Body>
void for_two_bytes(Type type, Body&& body) {
  for_type(type, [&](auto zero) {
    if constexpr (sizeof(zero) == 2) {
      body(zero);
    } else {
      throw std::runtime_error("x: expected Half or BFloat16");
    }
  });
}

template <typename Body>
void for_operand(const std::string& name, Body&& body) {
  if (name == "e4m3") return body(__nv_fp8_e4m3());
  if (name == "u8") return body(uint8_t());
  throw std::runtime_error("operand: must be e4m3 or u8");
}

// What stands for 0 in the tests' steps.
template <typename Operand>
constexpr float zero_of() {
  return std::is_same_v<Operand, uint8_t> ? 128.f : 0.f;
}

const float* optional_floats(const Tensor& vector) { return vector.numel() == 0 ? nullptr : data<const float>(vector); }

std::tuple<Tensor, Tensor> quantise_rows_op(const Tensor& x, const Tensor& factors, double step,
                                            const std::string& operand) {
  check_shape("x", x, {kAnySize, kAnySize});
  const DeviceGuard guard(x.get_device_index());
  const Tensor out = empty(x, {x.size(0), x.size(1)}, ScalarType::Byte);
  const Tensor scales = empty(x, {x.size(0), 2}, ScalarType::Float);
  for_two_bytes(type_of(x), [&](auto zero) {
    for_operand(operand, [&](auto number) {
      using T = decltype(zero);
      using Operand = decltype(number);
      const OperandRows<Operand> to{data<Operand>(out),
                                    reinterpret_cast<RowNorm*>(scales.data_ptr()),
                                    optional_floats(factors),
                                    {static_cast<float>(step), zero_of<Operand>()}};
      check(quantise_rows(data<const T>(x), to, nullptr, static_cast<int>(x.size(0)), static_cast<int>(x.size(1)),
                          current_stream(x), Order::kSerial),
            "quantise_rows");
    });
  });
  return {out, scales};
}

std::tuple<Tensor, Tensor, Tensor> norm_operands_op(const Tensor& x, const Tensor& bias, const Tensor& gamma,
                                                    const Tensor& beta, const Tensor& factors, double epsilon,
                                                    double step, const std::string& operand) {
  check_shape("x", x, {kAnySize, kAnySize});
  const DeviceGuard guard(x.get_device_index());
  const Tensor normal = torch::stable::empty_like(x), out = empty(x, {x.size(0), x.size(1)}, ScalarType::Byte);
  const Tensor scales = empty(x, {x.size(0), 2}, ScalarType::Float);
  for_two_bytes(type_of(x), [&](auto zero) {
    for_operand(operand, [&](auto number) {
      using T = decltype(zero);
      using Operand = decltype(number);
      const AddNorm<T> a{
          data<const T>(x),        optional_floats(bias),       nullptr,         data<const float>(gamma),
          data<const float>(beta), static_cast<float>(epsilon), data<T>(normal), nullptr};
      const OperandRows<Operand> to{data<Operand>(out),
                                    reinterpret_cast<RowNorm*>(scales.data_ptr()),
                                    optional_floats(factors),
                                    {static_cast<float>(step), zero_of<Operand>()}};
      check(norm_operands(a, to, nullptr, static_cast<int>(x.size(0)), static_cast<int>(x.size(1)), current_stream(x),
                          Order::kSerial),
            "norm_operands");
    });
  });
  return {normal, out, scales};
}

template <typename Types>
void product(const Tensor& x, const Tensor& w, EightBitArguments<Types>& a, const Tensor& out, int64_t cut) {
  a.epilogue.out = data<typename Types::Result>(out);
  const int capacity = static_cast<int>(x.size(0));
  const EightBitShape shape{capacity, a.n, a.k, a.epilogue.pointwise == Pointwise::gelu};
  const EightBitCut chosen = cut < 0 ? choose_eight_bits(DeviceInfo::current(), shape) : static_cast<EightBitCut>(cut);
  check(eight_bit_rows(data<const typename Types::Operand>(x), data<const typename Types::Weight>(w), a, capacity,
                       chosen, current_stream(x), Order::kSerial),
        "eight_bit_rows");
}

// tokens int32 [1]; like: what the result, or the residual, is of.
Tensor eight_bit_rows_op(const Tensor& x, const Tensor& rows, const Tensor& w, const Tensor& columns,
                         const Tensor& sums, const Tensor& bias, const Tensor& residual, const Tensor& like,
                         const Tensor& tokens, bool gelu, double step, const std::string& operand, int64_t cut) {
  const DeviceGuard guard(x.get_device_index());
  const int64_t n = w.size(0), k = w.size(1);
  const Tensor out = empty(like, {x.size(0), n}, step > 0 ? ScalarType::Byte : like.scalar_type());
  const auto fill = [&](auto& a) {
    a.tokens = data<const int>(tokens);
    a.n = static_cast<int>(n);
    a.k = static_cast<int>(k);
    a.epilogue.bias = optional_floats(bias);
    a.epilogue.pointwise = gelu ? Pointwise::gelu : Pointwise::none;
    a.scales = {
        reinterpret_cast<const RowNorm*>(rows.data_ptr()), {}, data<const float>(columns), optional_floats(sums), {}};
  };
  for_operand(operand, [&](auto number) {
    using Operand = decltype(number);
    if (step > 0) {
      EightBitArguments<EightBitTypes<Operand, Operand, __half>> a{};
      fill(a);
      a.scales.result = {static_cast<float>(step), zero_of<Operand>()};
      return product(x, w, a, out, cut);
    }
    for_two_bytes(type_of(like), [&](auto zero) {
      using T = decltype(zero);
      EightBitArguments<EightBitTypes<Operand, T, T>> a{};
      fill(a);
      if (residual.numel() > 0) a.epilogue.residual = data<const T>(residual);
      product(x, w, a, out, cut);
    });
  });
  return out;
}

}  // namespace
}  // namespace efft::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(efft_test, m) {
  // Rows of x as operands, e4m3 or u8: bytes [T, K], and scale and shift of each row [T, 2]. step 0: each row its own.
  m.def("quantise_rows(Tensor x, Tensor factors, float step, str operand) -> (Tensor, Tensor)");
  // LayerNorm(x + bias) as it is, as operands, and their scales.
  m.def(
      "norm_operands(Tensor x, Tensor bias, Tensor gamma, Tensor beta, Tensor factors, float epsilon, float step, "
      "str operand) -> (Tensor, Tensor, Tensor)");
  // See linear/eight.cuh; empty vectors are absent. step > 0: the result is an operand in such steps. cut -1: chosen.
  m.def(
      "eight_bit_rows(Tensor x, Tensor rows, Tensor w, Tensor columns, Tensor sums, Tensor bias, Tensor residual, "
      "Tensor like, Tensor tokens, bool gelu, float step, str operand, int cut) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(efft_test, CUDA, m) {
  m.impl("quantise_rows", TORCH_BOX(&efft::cuda::quantise_rows_op));
  m.impl("norm_operands", TORCH_BOX(&efft::cuda::norm_operands_op));
  m.impl("eight_bit_rows", TORCH_BOX(&efft::cuda::eight_bit_rows_op));
}
