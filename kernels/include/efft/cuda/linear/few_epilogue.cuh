// From the sums of a tile to the output: input norm, bias, activation, residual.
#pragma once

#include "efft/cuda/linear/epilogue.cuh"
#include "efft/cuda/linear/few_exchange.cuh"
#include "efft/cuda/linear/few_norm.cuh"
#include "efft/cuda/ptx/barrier.cuh"

namespace efft::cuda {

// The vectors along the outputs that a tile's epilogue needs, in shared memory: [kColumns] each.
template <typename Tile>
struct TileColumns {
  float *bias, *weight_sums, *gamma, *beta;

  __device__ explicit TileColumns(float* shared)
      : bias(shared),
        weight_sums(shared + Tile::kColumns),
        gamma(shared + 2 * Tile::kColumns),
        beta(shared + 3 * Tile::kColumns) {}

  template <typename Types>
  __device__ void fill(const LinearArguments<Types>& a, int column, int thread) const {
    const auto value = [&](const float* vector, int i, float absent) {
      return vector != nullptr && column + i < a.n ? __ldg(vector + column + i) : absent;
    };
    const bool normalised = a.epilogue.residual_norm != nullptr;
    for (int i = thread; i < Tile::kColumns; i += Tile::kConsumers) {
      bias[i] = value(a.epilogue.bias, i, 0.f);
      weight_sums[i] = value(a.norm.weight_sums, i, 0.f);
      gamma[i] = value(normalised ? a.epilogue.gamma : nullptr, i, 1.f);
      beta[i] = value(normalised ? a.epilogue.beta : nullptr, i, 0.f);
    }
  }
};

// Eight neighbouring outputs of one row: what one thread finishes at a time.
template <typename Tile>
struct TileItem {
  static constexpr int kCount = Tile::kShareRows * Tile::kColumns / 8;
  static constexpr int kOfThread = (kCount + Tile::kConsumers - 1) / Tile::kConsumers;
  int row, column;  // in the block's share of the tile
  bool inside;      // the output has it

  __device__ TileItem(int index, int first_row, int tokens, int first_column, int n)
      : row(index / (Tile::kColumns / 8)),
        column(index % (Tile::kColumns / 8) * 8),
        inside(index < kCount && first_row + row < tokens && first_column + column < n) {}
};

// A thread's residual elements and their rows' norms, read before the product rather than after it.
template <typename Types, typename Tile>
struct Residual {
  using Values = Pack<typename Types::Residual, 8>;
  static_assert(sizeof(Values) == 16);
  Values values[TileItem<Tile>::kOfThread];
  RowNorm norms[TileItem<Tile>::kOfThread];

  __device__ __forceinline__ void load(const LinearArguments<Types>& a, int row, int column, int tokens, int thread) {
#pragma unroll
    for (int i = 0; i < TileItem<Tile>::kOfThread; ++i) {
      const TileItem<Tile> item(thread + i * Tile::kConsumers, row, tokens, column, a.n);
      uint4 words{};  // zeros in both types
      norms[i] = {1.f, 0.f};
      if (a.epilogue.residual != nullptr && item.inside) {
        const int64_t r = row + item.row;
        words = __ldcg(reinterpret_cast<const uint4*>(a.epilogue.residual + r * a.n + column + item.column));
        if (a.epilogue.residual_norm != nullptr) {
          const float2 norm = __ldcg(reinterpret_cast<const float2*>(a.epilogue.residual_norm) + r);
          norms[i] = {norm.x, norm.y};
        }
      }
      values[i] = reinterpret_cast<const Values&>(words);
    }
  }
};

__device__ __forceinline__ void load_eight(const float* from, float (&to)[8]) {
  const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
  to[0] = low.x, to[1] = low.y, to[2] = low.z, to[3] = low.w;
  to[4] = high.x, to[5] = high.y, to[6] = high.z, to[7] = high.w;
}

// Lays a warpgroup's accumulators down as rows of floats.
template <typename Tile>
__device__ __forceinline__ void lay_down(const float (&accumulators)[Tile::kGroupColumns / 2], float* sums, int row,
                                         int column, int lane) {
#pragma unroll
  for (int i = 0; i < Tile::kGroupColumns / 8; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (row + half * 8 < Tile::kRows)
        *reinterpret_cast<float2*>(sums + (row + half * 8) * Tile::kSumsPitch + column + i * 8 + lane % 4 * 2) =
            make_float2(accumulators[i * 4 + half * 2], accumulators[i * 4 + half * 2 + 1]);
}

// The sums of one item, all parts of K together, always in the same order.
template <typename Tile>
__device__ __forceinline__ void gather(const float* sums, const TileItem<Tile>& item, float (&values)[8]) {
  load_eight(sums + item.row * Tile::kSumsPitch + item.column, values);
#pragma unroll
  for (int part = 1; part < Tile::kParts; ++part) {
    float more[8];
    load_eight(sums + (part * Tile::kShareRows + item.row) * Tile::kSumsPitch + item.column, more);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] += more[i];
  }
}

// Eight neighbouring outputs of one row, for finish_values.
template <typename Types, typename Tile, bool NORMALISE>
struct ItemView {
  float bias[8], weight_sums[8];
  RowNorm norm;  // of the input, with NORMALISE
  Pointwise kind;

  __device__ __forceinline__ ItemView(const TileColumns<Tile>& columns, int column, RowNorm norm, Pointwise kind)
      : norm(norm), kind(kind) {
    load_eight(columns.bias + column, bias);
    if constexpr (NORMALISE) load_eight(columns.weight_sums + column, weight_sums);
  }
  __device__ __forceinline__ float product(float sum, int i) const {
    if constexpr (NORMALISE)
      return normalised_product(sum, norm, weight_sums[i], bias[i]);
    else
      return sum + bias[i];
  }
  __device__ __forceinline__ void activate(float (&values)[8]) const {
    cuda::activate<typename Types::Result>(values, kind);
  }
};

template <typename Types, typename Tile>
__device__ __forceinline__ void add_residual(float (&values)[8], const Pack<typename Types::Residual, 8>& residual,
                                             RowNorm norm, const TileColumns<Tile>& columns, int column) {
  float gamma[8], beta[8];
  load_eight(columns.gamma + column, gamma);
  load_eight(columns.beta + column, beta);
#pragma unroll
  for (int i = 0; i < 8; ++i)
    values[i] += fmaf(normalised_residual(to_float(residual.values[i]), norm), gamma[i], beta[i]);
}

// Finishes a block's share of a tile, whose first output is (row, column). Products with input norm have no residual;
// those with one may be asked for the moments of their rows.
template <typename Types, typename Tile, bool NORMALISE>
__device__ void finish_tile(const LinearArguments<Types>& a, float* sums, const RowNorm* row_norms,
                            const Residual<Types, Tile>& residual, const TileColumns<Tile>& columns, int row,
                            int column, int tokens, int thread) {
  const auto finish = [&](int i, const auto& and_residual) {
    const TileItem<Tile> item(thread + i * Tile::kConsumers, row, tokens, column, a.n);
    if (!item.inside) return;
    float values[8];
    gather(sums, item, values);
    const RowNorm norm = NORMALISE ? row_norms[item.row] : RowNorm{};
    const ItemView<Types, Tile, NORMALISE> view(columns, item.column, norm, a.epilogue.pointwise);
    finish_values(values, view, [&](float (&values)[8]) { and_residual(values, item); });
    store(a.epilogue.out + static_cast<int64_t>(row + item.row) * a.n + column + item.column, values);
  };
  if (NORMALISE || a.epilogue.residual == nullptr) {
    // Rolled: code that runs once per launch costs its fetch from the L2 cache.
#pragma unroll 1
    for (int i = 0; i < TileItem<Tile>::kOfThread; ++i) finish(i, [](float (&)[8], const TileItem<Tile>&) {});
    return;
  }
  const bool with_moments = a.epilogue.moments != nullptr;
#pragma unroll
  for (int i = 0; i < TileItem<Tile>::kOfThread; ++i)
    finish(i, [&](float (&values)[8], const TileItem<Tile>& item) {
      add_residual<Types>(values, residual.values[i], residual.norms[i], columns, item.column);
      if (with_moments) leave_moments(values, sums + item.row * Tile::kSumsPitch + item.column);
    });
  if (!with_moments) return;
  ptx::barrier_sync(kSumsBarrier, Tile::kConsumers);
  write_moments<Tile>(a, sums, row, column, tokens, thread);
}

}  // namespace efft::cuda
