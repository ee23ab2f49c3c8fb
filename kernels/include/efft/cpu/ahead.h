// Memory that will be needed soon, asked for at the pace at which a register tile computes.
#pragma once

#include <algorithm>
#include <cstdint>

namespace efft::cpu {
namespace {

// Lines of [from, to) for the second-level cache, in equal portions. All at once they would fill the queue of misses
// and hold the tile up as long as memory takes.
class Ahead {
 public:
  static constexpr int64_t kEvery = 4;  // steps from one portion to the next

  Ahead() = default;
  Ahead(const char* from, const char* to, int64_t steps) : at_(from), end_(to) {
    const int64_t portions = (steps + kEvery - 1) / kEvery;
    portion_ = ((to - from + 63) / 64 + portions - 1) / portions * 64;
  }
  void fetch() {
    for (const char* stop = std::min(end_, at_ + portion_); at_ < stop; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const char *at_ = nullptr, *end_ = nullptr;
  int64_t portion_ = 0;
};

}  // namespace
}  // namespace efft::cpu
