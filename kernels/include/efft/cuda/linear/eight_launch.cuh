// Host side of the products of eight-bit operands.
#pragma once

#include "efft/cuda/linear/eight_kernel.cuh"
#include "efft/cuda/linear/eight_portable.cuh"
#include "efft/cuda/linear/many_launch.cuh"

namespace efft::cuda {

template <typename Types>
cudaError_t eight_bit_rows(const typename Types::Operand* x, const typename Types::Weight* w,
                           const EightBitArguments<Types>& a, int capacity, EightBitCut cut, cudaStream_t stream,
                           Order order) {
  const auto with = [&](auto tile, auto kind) {
    using Tile = decltype(tile);
    return launch_walk<Tile, Types>(eight_bit_kernel<Types, Tile, kind.value>, x, w, a, capacity, order, stream);
  };
  constexpr bool kShifts = std::is_same_v<typename Types::Operand, uint8_t>;
  const auto cut_with = [&](auto kind, auto adds) {
    constexpr bool kAdds = decltype(adds)::value;
    switch (cut) {
      case EightBitCut::columns96:
        return with(EightBitTile<96, Warpgroups::together, kAdds, kShifts>{}, kind);
      case EightBitCut::columns256:
        return with(EightBitTile<256, Warpgroups::together, kAdds, kShifts>{}, kind);
      case EightBitCut::turns128:
        return with(EightBitTile<128, Warpgroups::in_turns, kAdds, kShifts>{}, kind);
      case EightBitCut::turns176:
        return with(EightBitTile<176, Warpgroups::in_turns, kAdds, kShifts>{}, kind);
      case EightBitCut::turns192:
        return with(EightBitTile<192, Warpgroups::in_turns, kAdds, kShifts>{}, kind);
    }
    return cudaErrorInvalidValue;
  };
  constexpr std::integral_constant<Pointwise, Pointwise::none> none;
  constexpr std::integral_constant<Pointwise, Pointwise::gelu> gelu;
  const DeviceInfo& device = DeviceInfo::current();
  constexpr bool kE4m3 = std::is_same_v<typename Types::Operand, __nv_fp8_e4m3>;
  if (!eight_bit_linear(device, kE4m3, a.n, a.k)) return cudaErrorInvalidValue;
  if (!device.hopper) return portable_eight_bits(x, w, a, capacity, order, stream);
  const Pointwise kind = a.epilogue.pointwise;
  if (kind == Pointwise::gelu && a.epilogue.residual == nullptr) return cut_with(gelu, std::false_type{});
  if constexpr (sizeof(typename Types::Result) == 2) {
    if (kind == Pointwise::none)
      return a.epilogue.residual == nullptr ? cut_with(none, std::false_type{}) : cut_with(none, std::true_type{});
  }
  return cudaErrorInvalidValue;
}

}  // namespace efft::cuda

#define EFFT_EIGHT_BIT_ROWS(...)                                                               \
  template cudaError_t eight_bit_rows(const __VA_ARGS__::Operand*, const __VA_ARGS__::Weight*, \
                                      const EightBitArguments<__VA_ARGS__>&, int, EightBitCut, cudaStream_t, Order);
