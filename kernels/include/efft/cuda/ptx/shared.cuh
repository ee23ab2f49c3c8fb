// Addresses in shared memory. The wrappers in this folder are one thin function for each PTX instruction and bear its
// name. Source: NVIDIA's PTX ISA 9.0.
//
// What needs sm_90a stands in kernels whose bodies EFFT_HOPPER guards: other targets compile them empty.
#pragma once

#include <cstdint>

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define EFFT_HOPPER 1
#endif

namespace efft::cuda::ptx {

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// What the wrappers take: a pointer, or the address that it is within shared memory.
struct Shared {
  uint32_t address;

  __device__ __forceinline__ Shared(uint32_t address) : address(address) {}
  __device__ __forceinline__ Shared(const void* pointer) : address(shared_address(pointer)) {}
};

// Four words at once.
__device__ __forceinline__ void store_zeros(Shared to) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(to.address), "r"(0) : "memory");
}

__device__ __forceinline__ void store_shared(Shared to, const float (&v)[4]) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(to.address), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
               : "memory");
}

__device__ __forceinline__ void load_shared(float (&v)[4], Shared from) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v[0]), "=f"(v[1]), "=f"(v[2]), "=f"(v[3])
               : "r"(from.address)
               : "memory");
}

}  // namespace efft::cuda::ptx
