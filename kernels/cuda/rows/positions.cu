#include <stdexcept>
#include <string>

#include "efft/cuda/attention/score.cuh"
#include "efft/cuda/rows/positions.cuh"
#include "efft/cuda/rows/rows.cuh"

namespace efft::cuda {
namespace {

constexpr int kThreads = 256;

dim3 blocks_for(int64_t elements) { return dim3(static_cast<unsigned>((elements + kThreads - 1) / kThreads)); }

// The angle in double costs some chips a lot: only where it is asked for.
__global__ void __launch_bounds__(kThreads)
    angle_kernel(const AngleTable table, const Call* call, const int* cu_seqlens, const int* rows, const int* tokens) {
  wait_then_release();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int token = static_cast<int>(i / table.pairs);
  if (token >= *tokens) return;
  const int rank = token - cu_seqlens[rows[token] / call->length];
  const float frequency = table.frequencies[i % table.pairs];
  if (table.exact) {
    double sine, cosine;
    const double rest = table.frequencies[table.pairs + i % table.pairs];
    sincos(static_cast<double>(rank) * (static_cast<double>(frequency) + rest), &sine, &cosine);
    table.out[i] = make_float2(static_cast<float>(cosine), static_cast<float>(sine));
  } else {
    float sine, cosine;
    sincosf(static_cast<float>(rank) * frequency, &sine, &cosine);
    table.out[i] = make_float2(cosine, sine);
  }
}

__device__ __forceinline__ int bucket(const Buckets& buckets, int distance) {
  if (distance <= buckets.exact) return distance;
  int low = 0, high = buckets.count;  // steps below `low` are reached, from `high` on they are not
  while (low < high) {
    const int middle = (low + high) / 2;
    if (buckets.steps[middle] <= distance) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return buckets.exact + low;
}

__global__ void __launch_bounds__(kThreads)
    distance_kernel(const DistanceTable table, const __grid_constant__ Buckets buckets, int stride) {
  wait_then_release();
  const int i = blockIdx.x * kThreads + threadIdx.x, head = blockIdx.y;
  if (i >= stride) return;
  const int distance = i - stride / 2, far = abs(distance);
  if (table.kind == Relative::disentangled) {
    const int signed_bucket = distance < 0 ? -bucket(buckets, far) : bucket(buckets, far);
    static_cast<int*>(table.out)[i] = min(max(signed_bucket + table.span, 0), 2 * table.span - 1);
    return;
  }
  float value;
  if (table.kind == Relative::alibi) {
    value = -table.relative[head] * static_cast<float>(far);
  } else {
    const int index = (distance < 0 ? table.span : 0) + bucket(buckets, far);
    value = table.relative[index * table.heads + head];
  }
  static_cast<float*>(table.out)[static_cast<int64_t>(head) * stride + i] = value * table.over_scale;
}

__global__ void __launch_bounds__(kWarp* kRowWarps)
    word_factor_kernel(const Call* call, const int* cu_seqlens, const int* rows, int64_t dropout_token,
                       float* factors) {
  wait_then_release();
  const int b = warp_row();
  if (b >= call->batch) return;
  const int begin = cu_seqlens[b], end = cu_seqlens[b + 1];
  int dropped = 0;
  for (int t = begin + static_cast<int>(threadIdx.x); t < end; t += kWarp) {
    dropped += call->ids[call->place(t, rows[t])] == dropout_token;
  }
  dropped = __reduce_add_sync(0xffffffffu, dropped);
  if (threadIdx.x != 0) return;
  const float share = static_cast<float>(dropped) / static_cast<float>(max(end - begin, 1));
  factors[b] = share < 1.f ? .88f / (1.f - share) : 0.f;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) round_kernel(const float* from, T* to, int64_t count) {
  wait_then_release();
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] = from_float<T>(from[i]);
}

// The least distance in (exact, most] whose bucket is at least `value`, or most + 1.
int64_t first_with(const EncoderSpec& spec, int64_t value, int64_t exact, int64_t most) {
  int64_t low = exact + 1, high = most + 1;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (bucket_of(spec, middle) >= value) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

}  // namespace

Buckets buckets_of(const EncoderSpec& spec) {
  Buckets buckets{};
  const bool apart = spec.relative == Relative::disentangled;
  if (!apart && spec.relative != Relative::buckets) return buckets;
  if (apart && spec.buckets == 0) {
    buckets.exact = static_cast<int>(spec.span());
    return buckets;
  }
  // Of one direction; disentangled: one more, since the rows of the two directions are not as many.
  const int64_t last = apart ? spec.buckets : spec.buckets / 2 - 1;
  const int64_t exact = apart ? spec.buckets / 2 : spec.buckets / 4 - 1;
  const int64_t steps = last - exact;
  if (steps > Buckets::kMost) {
    throw std::runtime_error("efft: buckets: the CUDA engine runs at most " +
                             std::to_string((apart ? 2 : 4) * Buckets::kMost) + ", got " +
                             std::to_string(spec.buckets));
  }
  buckets.exact = static_cast<int>(exact);
  constexpr int64_t kFar = 8;  // beyond `distance` by so many times nothing changes any more
  for (int64_t value = exact + 1; value <= last; ++value) {
    buckets.steps[buckets.count++] = static_cast<int>(first_with(spec, value, exact, kFar * spec.distance));
  }
  return buckets;
}

int DistanceTable::stride_of(int length) { return 2 * (length + kFarther); }

cudaError_t angle_table(const AngleTable& table, const Call* call, const int* cu_seqlens, const int* rows,
                        const int* tokens, int capacity, cudaStream_t stream) {
  const int64_t elements = static_cast<int64_t>(capacity) * table.pairs;
  return launch(angle_kernel, {blocks_for(elements), dim3(kThreads), 0, Order::kOverlap, stream}, table, call,
                cu_seqlens, rows, tokens);
}

cudaError_t distance_table(const DistanceTable& table, const Buckets& buckets, cudaStream_t stream) {
  const int stride = DistanceTable::stride_of(table.length);
  dim3 grid = blocks_for(stride);
  grid.y = table.kind == Relative::disentangled ? 1 : table.heads;
  return launch(distance_kernel, {grid, dim3(kThreads), 0, Order::kOverlap, stream}, table, buckets, stride);
}

template <typename T>
cudaError_t round_to(const float* from, T* to, int64_t count, cudaStream_t stream) {
  return launch(round_kernel<T>, {blocks_for(count), dim3(kThreads), 0, Order::kOverlap, stream}, from, to, count);
}
template cudaError_t round_to(const float*, __half*, int64_t, cudaStream_t);
template cudaError_t round_to(const float*, __nv_bfloat16*, int64_t, cudaStream_t);

cudaError_t word_factors(const Call* call, const int* cu_seqlens, const int* rows, int64_t dropout_token,
                         float* factors, int batch_capacity, cudaStream_t stream) {
  return launch(word_factor_kernel, {row_grid(batch_capacity), row_block(), 0, Order::kOverlap, stream}, call,
                cu_seqlens, rows, dropout_token, factors);
}

}  // namespace efft::cuda
