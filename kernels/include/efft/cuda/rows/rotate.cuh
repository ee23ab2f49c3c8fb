// Rotary embedding (RoFormer: Su et al. 2021) of the queries and keys of packed tokens, in place. Bound by memory:
// queries and keys read and written once.
#pragma once

#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {

template <typename T>
struct Rotation {
  T* qkv;                // [tokens, width]; a row begins with `heads` heads of queries and keys
  const float* bias;     // [heads * head_size] or nullptr, added first, only where pairs fill the head
  const float2* angles;  // [tokens, pairs]: cosine and sine
  int width;
  int heads;
  int head_size;
  int pairs;         // that are turned, of a head's first elements
  bool interleaved;  // elements 2 i and 2 i + 1 instead of i and i + pairs
};

namespace detail {

constexpr int kRotateThreads = 256;
constexpr int kRotateHeads = 2;  // of one thread, for one reading of the angles

// (a, b) turned by each pair's angle.
template <int PAIRS>
__device__ __forceinline__ void turn(float (&a)[PAIRS], float (&b)[PAIRS], const float2 (&angles)[PAIRS]) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) {
    const float turned = a[i] * angles[i].x - b[i] * angles[i].y;
    b[i] = b[i] * angles[i].x + a[i] * angles[i].y;
    a[i] = turned;
  }
}

template <int PAIRS>
__device__ __forceinline__ void part_neighbours(const float (&both)[2 * PAIRS], float (&a)[PAIRS], float (&b)[PAIRS]) {
#pragma unroll
  for (int i = 0; i < PAIRS; ++i) a[i] = both[2 * i], b[i] = both[2 * i + 1];
}

// PAIRS of a head by one thread: two packs of as many elements, or one of twice as many.
template <typename T, int PAIRS, bool INTERLEAVED>
struct RotatedPart {
  float a[PAIRS], b[PAIRS];

  __device__ __forceinline__ void load(const T* head, int pair, int pairs) {
    if constexpr (INTERLEAVED) {
      float both[2 * PAIRS];
      cuda::load(head + 2 * pair, both);
      part_neighbours(both, a, b);
    } else {
      cuda::load(head + pair, a);
      cuda::load(head + pairs + pair, b);
    }
  }
  __device__ __forceinline__ void add(const float* bias, int pair, int pairs) {
    float c[PAIRS], d[PAIRS];
    if constexpr (INTERLEAVED) {
      float both[2 * PAIRS];
      load_parameters(bias + 2 * pair, both);
      part_neighbours(both, c, d);
    } else {
      load_parameters(bias + pair, c);
      load_parameters(bias + pairs + pair, d);
    }
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) a[i] += c[i], b[i] += d[i];
  }
  __device__ __forceinline__ void store(T* head, int pair, int pairs) const {
    if constexpr (INTERLEAVED) {
      float both[2 * PAIRS];
#pragma unroll
      for (int i = 0; i < PAIRS; ++i) both[2 * i] = a[i], both[2 * i + 1] = b[i];
      cuda::store(head + 2 * pair, both);
    } else {
      cuda::store(head + pair, a);
      cuda::store(head + pairs + pair, b);
    }
  }
};

// 16 bytes at a time: tables are aligned, and so are rows of an even number.
template <int PAIRS>
__device__ __forceinline__ void load_angles(const float2* from, float2 (&to)[PAIRS]) {
  if constexpr (PAIRS % 2 == 0) {
#pragma unroll
    for (int i = 0; i < PAIRS; i += 2) {
      const float4 two = *reinterpret_cast<const float4*>(from + i);
      to[i] = make_float2(two.x, two.y), to[i + 1] = make_float2(two.z, two.w);
    }
  } else {
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) to[i] = from[i];
  }
}

// Angles and biases are older than the predecessor: they are on their way while it ends.
template <typename T, int PAIRS, bool INTERLEAVED>
__global__ void __launch_bounds__(kRotateThreads) rotate_kernel(const Rotation<T> r, const int* tokens) {
  const int packs = r.pairs / PAIRS, groups = (r.heads + kRotateHeads - 1) / kRotateHeads;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kRotateThreads + threadIdx.x;
  const int token = static_cast<int>(index / (packs * groups)), within = static_cast<int>(index % (packs * groups));
  const int pair = within % packs * PAIRS, first = within / packs * kRotateHeads;
  const bool exists = token < *tokens;
  float2 angles[PAIRS];
  RotatedPart<T, PAIRS, INTERLEAVED> biases[kRotateHeads] = {};
  if (exists) {
    load_angles(r.angles + static_cast<int64_t>(token) * r.pairs + pair, angles);
#pragma unroll
    for (int h = 0; h < kRotateHeads; ++h) {
      if (r.bias != nullptr && first + h < r.heads) biases[h].add(r.bias + (first + h) * r.head_size, pair, r.pairs);
    }
  }
  wait_for_predecessor();
  release_successor();
  if (!exists) return;
  T* const head = r.qkv + static_cast<int64_t>(token) * r.width + first * r.head_size;
  RotatedPart<T, PAIRS, INTERLEAVED> parts[kRotateHeads];
#pragma unroll
  for (int h = 0; h < kRotateHeads; ++h) {
    if (first + h < r.heads) parts[h].load(head + h * r.head_size, pair, r.pairs);
  }
#pragma unroll
  for (int h = 0; h < kRotateHeads; ++h) {
    if (first + h >= r.heads) return;
#pragma unroll
    for (int i = 0; i < PAIRS; ++i) parts[h].a[i] += biases[h].a[i], parts[h].b[i] += biases[h].b[i];
    turn(parts[h].a, parts[h].b, angles);
    parts[h].store(head + h * r.head_size, pair, r.pairs);
  }
}

template <typename T, int PAIRS, bool INTERLEAVED>
cudaError_t launch_rotate(const Rotation<T>& r, const int* tokens, int capacity, cudaStream_t stream, Order order) {
  const int64_t groups = (r.heads + kRotateHeads - 1) / kRotateHeads;
  const int64_t threads = static_cast<int64_t>(capacity) * (r.pairs / PAIRS) * groups;
  const dim3 grid(static_cast<unsigned>((threads + kRotateThreads - 1) / kRotateThreads));
  return launch(rotate_kernel<T, PAIRS, INTERLEAVED>, {grid, dim3(kRotateThreads), 0, order, stream}, r, tokens);
}

}  // namespace detail

// The first *tokens rows (device memory), at most `capacity`; angles as angle_table made them, older than the kernel in
// front (see launch.cuh).
template <typename T>
cudaError_t rotate(const Rotation<T>& r, const int* tokens, int capacity, cudaStream_t stream,
                   Order order = Order::kOverlap) {
  constexpr int kPairs = kPackWidth<T>;
  const bool whole = aligned(r.qkv) && aligned(r.bias) && r.width % kPairs == 0 && r.head_size % kPairs == 0;
  if (r.interleaved) {
    return whole && 2 * r.pairs % kPairs == 0 && r.pairs % 2 == 0
               ? detail::launch_rotate<T, kPairs / 2, true>(r, tokens, capacity, stream, order)
               : detail::launch_rotate<T, 1, true>(r, tokens, capacity, stream, order);
  }
  return whole && r.pairs % kPairs == 0 ? detail::launch_rotate<T, kPairs, false>(r, tokens, capacity, stream, order)
                                        : detail::launch_rotate<T, 1, false>(r, tokens, capacity, stream, order);
}

#define EFFT_ROTATE(T) template cudaError_t rotate(const Rotation<T>&, const int*, int, cudaStream_t, Order);
#define EFFT_ROTATE_EXTERN(T) extern EFFT_ROTATE(T)
EFFT_EACH_TYPE(EFFT_ROTATE_EXTERN)
#undef EFFT_ROTATE_EXTERN

}  // namespace efft::cuda
