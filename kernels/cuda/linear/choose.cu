#include <algorithm>
#include <initializer_list>
#include <limits>

#include "efft/cuda/linear/choose.h"

namespace efft::cuda {
namespace {

constexpr float kNever = std::numeric_limits<float>::infinity();
constexpr float kTie = 1.00001f;  // bids that differ by rounding are equal
constexpr int kManyRowsTile = 128;
// One multiprocessor's matrix unit at the clock that long products run at: 4,096 operations a cycle, 1.7 GHz.
constexpr float kOperationsPerMicrosecond = 4096.f * 1700.f;

// What the matrix units need for `columns` outputs of 128 tokens, on one multiprocessor.
float microseconds_of(int columns, int k) {
  return 2.f * kManyRowsTile * static_cast<float>(columns) * static_cast<float>(k) / kOperationsPerMicrosecond;
}

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// A product in tiles of 128 tokens by `columns` outputs: it takes as long as the fullest multiprocessor has tiles.
int rounds(const DeviceInfo& device, const LinearShape& s, int columns) {
  return ceil_divide(ceil_divide(s.rows, kManyRowsTile) * ceil_divide(s.n, columns), device.multiprocessors);
}

// With all multiprocessors busy to the end.
float ideal(const DeviceInfo& device, const LinearShape& s) {
  return ceil_divide(s.rows, kManyRowsTile) * microseconds_of(s.n, s.k) / static_cast<float>(device.multiprocessors);
}

// --- cuBLASLt

// It was as fast as the many rows' kernel where that keeps three quarters of the matrix units busy in one round.
constexpr float kLibraryShare = .75f;

float library_bid(const DeviceInfo& device, const LinearShape& s) {
  return s.own_only ? kNever : ideal(device, s) / kLibraryShare;
}

// --- few rows

constexpr int kFewTokens = 256;   // up to here nothing else was faster
constexpr float kFewShare = .5f;  // of the matrix units' time, beyond, in one round of the other's narrowest tiles
constexpr float kFewShareOfSeveral = .01f;  // in several: weights are read too often. Only where nothing else bids

struct FewCandidate {
  FewChoice choice;
  int least, most;  // blocks: enough to be worth it, and not so many that clusters would wait for each other
};

// In the order of their preference, as the time of whole layers of BERT-base on an H200 has it. The last of each suits
// every problem.
constexpr int kAnyBlocks = 1 << 30, kLongProduct = 2048;
constexpr FewCandidate kUpTo32[] = {{{32, 32, 1, 1}, 80, kAnyBlocks},
                                    {{32, 24, 1, 1}, 80, kAnyBlocks},
                                    {{32, 24, 4, 1}, 80, kAnyBlocks},
                                    {{32, 32, 4, 1}, 80, kAnyBlocks},
                                    {{32, 8, 1, 1}, 0, kAnyBlocks}};
constexpr FewCandidate kShortProducts[] = {
    {{64, 192, 1, 2}, 72, kAnyBlocks}, {{64, 96, 1, 1}, 80, kAnyBlocks}, {{64, 128, 1, 2}, 120, kAnyBlocks},
    {{64, 64, 1, 1}, 56, kAnyBlocks},  {{64, 48, 1, 1}, 48, kAnyBlocks}, {{64, 32, 1, 1}, 80, kAnyBlocks},
    {{64, 48, 4, 1}, 48, kAnyBlocks},  {{64, 32, 4, 1}, 48, kAnyBlocks}, {{64, 8, 1, 1}, 0, kAnyBlocks}};
// Few outputs from long rows: without splitting K, blocks would read either matrix too often.
constexpr FewCandidate kLongProducts[] = {
    {{64, 192, 1, 1}, 256, kAnyBlocks}, {{64, 128, 1, 2}, 256, kAnyBlocks}, {{128, 96, 4, 1}, 64, 112},
    {{64, 96, 2, 1}, 96, 128},          {{128, 128, 4, 1}, 64, 112},        {{64, 64, 1, 1}, 96, kAnyBlocks},
    {{64, 48, 4, 1}, 80, 160},          {{64, 32, 4, 1}, 48, 256},          {{64, 8, 1, 1}, 0, kAnyBlocks}};

FewChoice few_tile(const LinearShape& s) {
  const auto suits = [&](const FewCandidate& c) {
    const int rows = c.choice.rows * c.choice.sharers;
    const int along_tokens = ceil_divide(s.rows, rows) * c.choice.sharers;
    const int blocks = along_tokens * (s.n / c.choice.columns) * c.choice.splits;
    return s.n % c.choice.columns == 0 && blocks >= c.least && blocks <= c.most;
  };
  const auto first = [&](const auto& candidates) {
    const FewCandidate* c = candidates;
    while (!suits(*c)) ++c;
    return c->choice;
  };
  if (s.rows <= 32) return first(kUpTo32);
  return s.k < kLongProduct ? first(kShortProducts) : first(kLongProducts);
}

// Where the host knows the number of tokens, cuBLASLt was never slower.
float few_bid(const DeviceInfo& device, const LinearShape& s) {
  if (!s.own_only) return kNever;
  const bool several = s.rows > kFewTokens && rounds(device, s, 96) > 1;
  return ideal(device, s) / (several ? kFewShareOfSeveral : kFewShare);
}

// --- many rows

struct ManyBid {
  ManyCut cut;
  float microseconds = kNever;
};

ManyBid lowest(std::initializer_list<ManyBid> bids) {
  return *std::min_element(bids.begin(), bids.end(),
                           [](const auto& a, const auto& b) { return a.microseconds < b.microseconds; });
}

// `factor`: what a cut costs beside its tiles.
ManyBid bid(const DeviceInfo& device, const LinearShape& s, ManyCut cut, int columns, float factor = 1.f) {
  return {cut, factor * microseconds_of(rounds(device, s, columns) * columns, s.k)};
}

// Among the own kernels alone.
ManyBid many_of_own(const DeviceInfo& device, const LinearShape& s) {
  const ManyBid narrow = bid(device, s, ManyCut::columns96, 96);
  if (s.closes || rounds(device, s, 96) == 1) return narrow;
  if (s.pointwise == Pointwise::none) return lowest({narrow, bid(device, s, ManyCut::columns256, 256)});
  return lowest({narrow, bid(device, s, ManyCut::columns176, 176), bid(device, s, ManyCut::columns192, 192)});
}

// GELU in the epilogue saves a kernel, which weighs the more the shorter the product; in several rounds tiles read
// more, and a kernel weighs less.
ManyBid many_with_gelu(const DeviceInfo& device, const LinearShape& s) {
  constexpr float kOneRound = .7f / kLibraryShare, kSeveral = .84f / kLibraryShare;
  if (rounds(device, s, 96) == 1) return bid(device, s, ManyCut::columns96, 96, kOneRound);
  if (rounds(device, s, 192) > 2) return bid(device, s, ManyCut::turns192, 192, kSeveral);
  const auto one = [&](ManyCut cut, int columns) {
    return bid(device, s, cut, columns, rounds(device, s, columns) == 1 ? kOneRound : kSeveral);
  };
  return lowest({one(ManyCut::columns192, 192), one(ManyCut::columns176, 176)});
}

ManyBid many_plain(const DeviceInfo& device, const LinearShape& s) {
  constexpr float kSeveral = .9f / kLibraryShare;
  // Narrow tiles in several rounds leave nothing over, but read more: with each round less is gained, and more lost.
  constexpr int kMostRounds = 3, kShortProduct = 1024, kNarrowProduct = 1024;
  // Products that close a block (n <= k) add a residual, for which the widest tile has no room beside its stages.
  ManyBid widest{ManyCut::columns256}, narrow{ManyCut::columns96};
  if (s.n > s.k && rounds(device, s, 256) == 1) widest = bid(device, s, ManyCut::columns256, 256);
  const int narrow_rounds = rounds(device, s, 96);
  if (narrow_rounds == 1) narrow = bid(device, s, ManyCut::columns96, 96);
  const bool outdone = widest.microseconds <= kTie * library_bid(device, s);
  if (!outdone && narrow_rounds > 1 && narrow_rounds <= kMostRounds && s.n <= kNarrowProduct && s.k <= kShortProduct)
    narrow = bid(device, s, ManyCut::columns96, 96, kSeveral);
  return lowest({widest, narrow});
}

ManyBid many_bid(const DeviceInfo& device, const LinearShape& s) {
  const bool built = s.pointwise == Pointwise::none || s.pointwise == Pointwise::gelu;
  if (!built || s.moments > kMostMoments || s.rows <= 0) return {ManyCut::columns96};
  if (s.own_only) return s.rows > kFewTokens ? many_of_own(device, s) : ManyBid{ManyCut::columns96};
  return s.pointwise == Pointwise::gelu ? many_with_gelu(device, s) : many_plain(device, s);
}

}  // namespace

LinearPlan choose_linear(const DeviceInfo& device, const LinearShape& s) {
  LinearPlan plan{Backend::library, ManyCut::columns96, {}, library_bid(device, s)};
  if (!s.two_bytes || !s.aligned || !own_linear(device, s.n, s.k)) return plan;
  const float few = few_bid(device, s);
  if (few < plan.microseconds) plan = {Backend::few_rows, ManyCut::columns96, few_tile(s), few};
  // Ties go to the kernel for many rows, whose epilogue does what else there is to do.
  const ManyBid many = many_bid(device, s);
  if (many.microseconds < kNever && many.microseconds <= kTie * plan.microseconds)
    plan = {Backend::many_rows, many.cut, {}, many.microseconds};
  return plan;
}

int expected_tokens(int capacity) {
  constexpr int kOneSequence = 512;
  return capacity <= kOneSequence ? capacity : std::max(kOneSequence, capacity / 2);
}

}  // namespace efft::cuda
