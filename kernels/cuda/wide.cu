#include "efft/cuda/wide.cuh"

namespace efft::cuda {
namespace {

// A product's tiles on this device: a kernel takes as long as its fullest multiprocessor has tiles.
struct Cut {
  int rounds;   // tiles of the fullest multiprocessor
  int columns;  // of a tile
  float share;  // of the matrix units' time, what computes outputs that are wanted
  int cost() const { return rounds * columns; }
};

Cut cut_into(int columns, int tokens, int n, int multiprocessors) {
  constexpr int kRows = 128;
  const int rows = (tokens + kRows - 1) / kRows, tiles = rows * ((n + columns - 1) / columns);
  const int rounds = (tiles + multiprocessors - 1) / multiprocessors;
  return {rounds, columns, static_cast<float>(rows) * n / (static_cast<float>(rounds) * columns * multiprocessors)};
}

}  // namespace

// The thresholds part what was faster from what was slower than cuBLASLt on an H200: docs/kernels.md.
WideCut choose_wide(int expected_tokens, int n, int k, Pointwise pointwise) {
  constexpr int kShortProduct = 1024;
  int multiprocessors = 0;
  if (expected_tokens <= 0 || multiprocessor_count(&multiprocessors) != cudaSuccess) return WideCut::none;
  const auto cut = [&](int columns) { return cut_into(columns, expected_tokens, n, multiprocessors); };
  const Cut narrow = cut(96);
  if (pointwise == Pointwise::gelu) {
    // Fused, it saves a kernel, which weighs the more the shorter the product.
    constexpr float kOneRound = .7f, kSeveral = .84f;
    if (narrow.rounds == 1) return narrow.share >= kOneRound ? WideCut::columns96 : WideCut::none;
    const Cut wide = cut(192), narrower = cut(176), best = narrower.cost() < wide.cost() ? narrower : wide;
    if (wide.rounds > 2) return wide.share >= kSeveral ? WideCut::turns192 : WideCut::none;
    if (best.share < (best.rounds == 1 ? kOneRound : kSeveral)) return WideCut::none;
    return best.columns == 192 ? WideCut::columns192 : WideCut::columns176;
  }
  if (pointwise != Pointwise::none) return WideCut::none;
  constexpr float kOneRound = .75f, kSeveral = .9f;
  const Cut widest = cut(256);
  // Products that close a block (n <= k) add a residual, for which the widest tile has no room beside its stages.
  if (n > k && widest.rounds == 1 && widest.share >= kOneRound) return WideCut::columns256;
  if (narrow.rounds == 1 && narrow.share >= kOneRound) return WideCut::columns96;
  // Narrow tiles in several rounds leave nothing over, but read more: with each round less is gained, and more lost.
  constexpr int kMostRounds = 3;
  const bool short_and_narrow = n <= 1024 && k <= kShortProduct;
  const bool several = narrow.rounds > 1 && narrow.rounds <= kMostRounds && narrow.share >= kSeveral;
  return short_and_narrow && several ? WideCut::columns96 : WideCut::none;
}

OwnChoice choose_own(int expected_tokens, int n, int k, Pointwise pointwise, bool closes) {
  constexpr int kFewTokens = 256;
  constexpr float kOneRound = .5f;
  OwnChoice choice{WideCut::none, choose_linear(expected_tokens, n, k)};
  int multiprocessors = 0;
  const bool built = pointwise == Pointwise::none || pointwise == Pointwise::gelu;
  if (expected_tokens <= kFewTokens || !built || multiprocessor_count(&multiprocessors) != cudaSuccess) return choice;
  const Cut narrow = cut_into(96, expected_tokens, n, multiprocessors);
  if (narrow.rounds == 1 && narrow.share < kOneRound) return choice;
  choice.wide = WideCut::columns96;
  if (narrow.rounds == 1 || closes) return choice;
  int least = narrow.cost();
  const auto consider = [&](WideCut cut, int columns) {
    const int cost = cut_into(columns, expected_tokens, n, multiprocessors).cost();
    if (cost < least) least = cost, choice.wide = cut;
  };
  if (pointwise == Pointwise::none) {
    consider(WideCut::columns256, 256);
  } else {
    consider(WideCut::columns176, 176);
    consider(WideCut::columns192, 192);
  }
  return choice;
}

}  // namespace efft::cuda
