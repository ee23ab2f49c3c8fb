#include <algorithm>
#include <iterator>

#include "efft/cuda/linear/choose.h"

namespace efft::cuda {
namespace {

constexpr float kOperationsPerCycle = 8192.f;  // of eight bits, by one multiprocessor
constexpr int kTokens = 128;

// Fitted to whole products of BERT's sizes on an H200 at 1.7 GHz, every cut of each (docs/eight-bits.md).
struct Candidate {
  EightBitCut cut;
  int columns;
  float share;             // of the matrix unit's rate, in long products
  float plain, with_gelu;  // cycles that a tile takes besides
};
constexpr Candidate kCandidates[] = {{EightBitCut::turns192, 192, .96f, 2000.f, 2650.f},
                                     {EightBitCut::turns176, 176, 1.f, 2300.f, 2950.f},
                                     {EightBitCut::turns128, 128, .93f, 1600.f, 2000.f},
                                     {EightBitCut::columns256, 256, .87f, 5400.f, 5800.f},
                                     {EightBitCut::columns96, 96, .83f, 1600.f, 2600.f}};
constexpr float kLastOutputs = 10.f;  // cycles a column, in turns: the last tile's outputs have no products beside them

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// Cycles of the fullest multiprocessor.
float cycles(const DeviceInfo& device, const EightBitShape& s, const Candidate& c) {
  const auto columns = static_cast<float>(c.columns);
  const auto tiles = static_cast<float>(
      ceil_divide(ceil_divide(s.rows, kTokens) * ceil_divide(s.n, c.columns), device.multiprocessors));
  const float products = 2.f * kTokens * columns * static_cast<float>(s.k) / (kOperationsPerCycle * c.share);
  const bool in_turns = c.cut != EightBitCut::columns96 && c.cut != EightBitCut::columns256;
  return tiles * (products + (s.gelu ? c.with_gelu : c.plain)) + (in_turns ? columns * kLastOutputs : 0.f);
}

}  // namespace

EightBitCut choose_eight_bits(const DeviceInfo& device, const EightBitShape& s) {
  return std::min_element(std::begin(kCandidates), std::end(kCandidates),
                          [&](const auto& a, const auto& b) { return cycles(device, s, a) < cycles(device, s, b); })
      ->cut;
}

}  // namespace efft::cuda
