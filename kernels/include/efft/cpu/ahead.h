// Memory that will be needed soon, asked for at the pace at which a register tile computes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace efft::cpu {
namespace {

// Lines of [from, to) for the second-level cache, in equal portions. All at once they would fill the queue of misses
// and hold the tile up as long as memory takes. Where a tile has few to ask for, that costs less than the portions do.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const char* from, const char* to, int64_t steps) : at_(from), end_(to) {
    // A slice of a very small depth may have no step at all.
    const int64_t lines = (to - from + 63) / 64, portions = std::max<int64_t>(1, (steps + kEvery - 1) / kEvery);
    portion_ = (lines + portions - 1) / portions * 64;
    if (lines > kFew) return;
    portion_ = lines * 64;
    fetch();
  }

  // step(k) for k from 0 to `steps`, and a portion every few of them.
  template <typename Step>
  inline void each(int64_t steps, const Step& step) {
    if (at_ >= end_) {
      for (int64_t k = 0; k < steps; ++k) step(k);
      return;
    }
    for (int64_t k = 0; k < steps;) {
      fetch();
      for (const int64_t stop = std::min(steps, k + kEvery); k < stop; ++k) step(k);
    }
  }

 private:
  static constexpr int64_t kEvery = 4;  // steps from one portion to the next
  static constexpr int64_t kFew = 64;

  void fetch() {
    for (const char* stop = std::min(end_, at_ + portion_); at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

  const char *at_ = nullptr, *end_ = nullptr;
  int64_t portion_ = 0;
};

}  // namespace
}  // namespace efft::cpu
