// Register fragments of a strip of 16 query rows held by one warp, in the layout that mma.m16n8k16 and
// wgmma.m64nNk16 share: lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and 2 (l % 4) + 1 of every group of 8.
#pragma once

#include <cuda_fp8.h>

#include "efft/cuda/ptx/warp.cuh"
#include "efft/cuda/types.cuh"

namespace efft::cuda {

// Accumulators of kColumns columns: [group of 8 columns][row 0: two columns, row 1: two columns].
template <int kColumns>
using Accumulator = float[kColumns / 8][4];

// Left operands of kColumns columns: [step of 16 columns][register].
template <int kColumns>
using Operand = uint32_t[kColumns / 16][4];

__device__ inline int fragment_row() { return threadIdx.x % 32 / 4; }
__device__ inline int fragment_column() { return threadIdx.x % 4 * 2; }

// Two neighbouring values of a bias. Read one by one: a layer's vectors follow each other without gaps, so that where
// sizes are odd a bias starts on four bytes only.
__device__ inline float2 bias_pair(const float* bias) { return make_float2(bias[0], bias[1]); }

// Two neighbouring elements of a row plus their bias, zeros past the row's end.
template <typename T>
__device__ inline uint32_t biased_pair(const T* row, const float* bias, int column, bool valid) {
  if (!valid) return 0;
  const uint32_t pair = *reinterpret_cast<const uint32_t*>(row + column);
  if (bias == nullptr) return pair;
  const float2 value = unpack_pair<T>(pair);
  const float2 addend = bias_pair(bias + column);
  return pack_pair<T>(value.x + addend.x, value.y + addend.y);
}

// Adds a bias in shared memory to a strip's queries.
template <typename T, int kHead>
__device__ inline void add_bias(Operand<kHead>& queries, const float* bias) {
#pragma unroll
  for (int step = 0; step < kHead / 16; ++step) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float2 addend = *reinterpret_cast<const float2*>(bias + 16 * step + 8 * half + fragment_column());
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        const float2 value = unpack_pair<T>(queries[step][i]);
        queries[step][i] = pack_pair<T>(value.x + addend.x, value.y + addend.y);
      }
    }
  }
}

// The strip's queries straight from device memory; nullptr stands for a row that does not exist.
template <typename T, int kHead>
__device__ inline void load_queries(Operand<kHead>& queries, const T* const (&rows)[2], const float* bias,
                                    int head_size) {
#pragma unroll
  for (int step = 0; step < kHead / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = 16 * step + 8 * (i / 2) + fragment_column();
      const T* row = rows[i % 2];
      queries[step][i] = biased_pair(row, bias, column, row != nullptr && column < head_size);
    }
  }
}

// Accumulated probabilities become the left operand of the product with the values without leaving the lane.
template <typename T, int kKeys>
__device__ inline void to_operand(Operand<kKeys>& operand, const Accumulator<kKeys>& accumulator) {
#pragma unroll
  for (int step = 0; step < kKeys / 16; ++step) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &accumulator[2 * step + i / 2][2 * (i % 2)];
      operand[step][i] = pack_pair<T>(pair[0], pair[1]);
    }
  }
}

// Transposes the 4 x 4 words that the four lanes of a row hold.
__device__ inline void transpose_quad(uint32_t (&words)[4]) {
  const bool odd = threadIdx.x % 2;
  const bool high = threadIdx.x % 4 / 2;
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t received = __shfl_xor_sync(~0u, odd ? words[i] : words[i + 1], 1);
    (odd ? words[i] : words[i + 1]) = received;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t received = __shfl_xor_sync(~0u, high ? words[i] : words[i + 2], 2);
    (high ? words[i] : words[i + 2]) = received;
  }
}

// Neighbours of a row as operands of eight bits (see AttentionArguments).
struct OperandSteps {
  float inverse, zero;

  // Of values in steps already.
  template <bool E4M3>
  static __device__ __forceinline__ uint16_t round(float low, float high) {
    if constexpr (E4M3) {
      return __nv_cvt_float2_to_fp8x2(make_float2(low, high), __NV_SATFINITE, __NV_E4M3);
    } else {
      constexpr float kWhole = 12582912.f;  // 1.5 * 2^23: beyond, the bits of fp32 count whole numbers
      const auto bits = [](float number) { return __float_as_uint(fminf(fmaxf(number, 0.f), 255.f) + kWhole); };
      return static_cast<uint16_t>(__byte_perm(bits(low), bits(high), 0x0040));
    }
  }
  __device__ __forceinline__ uint16_t pair(float2 values) const {
    const float low = fmaf(values.x, inverse, zero), high = fmaf(values.y, inverse, zero);
    return zero == 0.f ? round<true>(low, high) : round<false>(low, high);
  }
};

// A row of operands, which have a byte each, by where it would be with elements of T.
template <typename T>
__device__ __forceinline__ uint8_t* operand_row(T* row, const T* out) {
  return reinterpret_cast<uint8_t*>(const_cast<T*>(out)) + (row - out);
}

// out = accumulator * factor + bias for the strip's two rows; nullptr stands for a row that does not exist.
template <typename T, int kHead>
__device__ inline void store_output(const Accumulator<kHead>& accumulator, const float (&factor)[2], const float* bias,
                                    T* const (&rows)[2], int head_size, const T* out, OperandSteps steps) {
#pragma unroll
  for (int group = 0; group < kHead / 8; ++group) {
    const int column = 8 * group + fragment_column();
    if (column >= head_size) continue;
    const float2 addend = bias ? bias_pair(bias + column) : make_float2(0.f, 0.f);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (rows[r] == nullptr) continue;
      const float* pair = &accumulator[group][2 * r];
      const float2 values = make_float2(pair[0] * factor[r] + addend.x, pair[1] * factor[r] + addend.y);
      if (steps.inverse != 0.f) {
        *reinterpret_cast<uint16_t*>(operand_row(rows[r], out) + column) = steps.pair(values);
      } else {
        *reinterpret_cast<uint32_t*>(rows[r] + column) = pack_pair<T>(values.x, values.y);
      }
    }
  }
}

// The same for rows that are kHead wide and aligned to 16 bytes, in stores of as many: the lanes of a row exchange
// their words first, since a store costs as much as the lines it touches. Called by whole warps.
template <typename T, int kHead>
__device__ inline void store_values(const Accumulator<kHead>& accumulator, const float (&factor)[2], const float* bias,
                                    T* const (&rows)[2]) {
#pragma unroll
  for (int first = 0; first < kHead / 8; first += 4) {
    uint32_t words[2][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 addend =
          bias ? *reinterpret_cast<const float2*>(bias + 8 * (first + i) + fragment_column()) : make_float2(0.f, 0.f);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float* pair = &accumulator[first + i][2 * r];
        words[r][i] = pack_pair<T>(fmaf(pair[0], factor[r], addend.x), fmaf(pair[1], factor[r], addend.y));
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      transpose_quad(words[r]);
      if (rows[r] != nullptr)
        *reinterpret_cast<uint4*>(rows[r] + 8 * (first + threadIdx.x % 4)) =
            make_uint4(words[r][0], words[r][1], words[r][2], words[r][3]);
    }
  }
}

// The same as operands of eight bits. A word holds the lane's pairs of two neighbouring groups of eight columns; the
// lane that receives the words of all four sorts their halves.
template <bool E4M3, typename T, int kHead>
__device__ inline void store_operands(const Accumulator<kHead>& accumulator, const float (&factor)[2],
                                      const float* bias, T* const (&rows)[2], const T* out, OperandSteps steps) {
  const float scale[2] = {factor[0] * steps.inverse, factor[1] * steps.inverse};
  const auto pair = [&](int group, int r) {
    float2 addend = make_float2(steps.zero, steps.zero);
    if (bias != nullptr) {
      const float2 own = *reinterpret_cast<const float2*>(bias + 8 * group + fragment_column());
      addend = make_float2(fmaf(own.x, steps.inverse, addend.x), fmaf(own.y, steps.inverse, addend.y));
    }
    const float* const sums = &accumulator[group][2 * r];
    return OperandSteps::round<E4M3>(fmaf(sums[0], scale[r], addend.x), fmaf(sums[1], scale[r], addend.y));
  };
#pragma unroll
  for (int first = 0; first < kHead / 8; first += 8) {
    constexpr int kWords = kHead >= 64 ? 4 : 2;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      uint32_t words[4] = {};
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        words[i] = __byte_perm(pair(first + 2 * i, r), pair(first + 2 * i + 1, r), 0x5410);
      transpose_quad(words);
      const int lane = threadIdx.x % 4;
      if (rows[r] == nullptr || lane >= kWords) continue;
      *reinterpret_cast<uint4*>(operand_row(rows[r], out) + 8 * first + 16 * lane) =
          make_uint4(__byte_perm(words[0], words[1], 0x5410), __byte_perm(words[2], words[3], 0x5410),
                     __byte_perm(words[0], words[1], 0x7632), __byte_perm(words[2], words[3], 0x7632));
    }
  }
}

// Either, as asked for.
template <typename T, int kHead>
__device__ inline void store_rows(const Accumulator<kHead>& accumulator, const float (&factor)[2], const float* bias,
                                  T* const (&rows)[2], const T* out, OperandSteps steps) {
  if (steps.inverse == 0.f) return store_values<T, kHead>(accumulator, factor, bias, rows);
  if (steps.zero == 0.f) return store_operands<true, T, kHead>(accumulator, factor, bias, rows, out, steps);
  store_operands<false, T, kHead>(accumulator, factor, bias, rows, out, steps);
}

}  // namespace efft::cuda
