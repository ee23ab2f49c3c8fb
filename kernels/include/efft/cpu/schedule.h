// How a matrix product is cut into tasks for a team.
#pragma once

#include <algorithm>
#include <cstdint>

#include "efft/cpu/kernels.h"

namespace efft::cpu {

// A block of rows meets one panel of weights after the other, and every block reads the weights anew. So its operand
// should stay in the second-level cache, and its rows be enough that the weights' way there is not what it waits for.
constexpr int64_t kFewestRows = 32, kMostRows = 192;

inline int64_t rows_of_block(const Format& format, int64_t depth) {
  const int64_t fitting = format.block_bytes / (format.padded_depth(depth) * format.element_bytes());
  return std::clamp(fitting / format.rows * format.rows, kFewestRows, kMostRows);
}

// The sums of a block of rows, and of one more tile that waits to be finished.
inline int64_t product_scratch_bytes(const Format& format) { return (kMostRows + format.rows) * format.columns * 4; }

// A grid of row blocks times runs of panels.
class Grid {
 public:
  Grid(const Format& format, const Product& product, int64_t rows, int threads)
      : format_(format), product_(product), rows_(rows), panels_(format.panels(product.b.outputs)) {
    tiles_ = (rows + format.rows - 1) / format.rows;
    const int64_t most = rows_of_block(format, product.b.depth);
    blocks_ = std::max<int64_t>(1, (rows + most - 1) / most);
    // Tasks are alike: where every thread gets as many blocks, all end together. Fewer blocks than threads stay large,
    // since each reads the weights anew.
    if (blocks_ >= threads) blocks_ = (blocks_ + threads - 1) / threads * threads;
    // Several tasks per thread, so that one that starts late or is interrupted delays the others little.
    const int64_t wanted = (4 * threads + blocks_ - 1) / blocks_;
    runs_ = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(panels_, 1));
  }

  int64_t tasks() const { return rows_ && panels_ ? blocks_ * runs_ : 0; }

  void run(int64_t task, void* scratch) const {
    const int64_t block = task / runs_, run = task % runs_;
    const int64_t row0 = std::min(block * tiles_ / blocks_ * format_.rows, rows_);
    const int64_t row1 = std::min((block + 1) * tiles_ / blocks_ * format_.rows, rows_);
    const int64_t each = product_.b.panels_of_column();
    format_.multiply(product_, row0, row1, run * panels_ / runs_ * each, (run + 1) * panels_ / runs_ * each,
                     static_cast<float*>(scratch));
  }

 private:
  const Format& format_;
  const Product& product_;
  int64_t rows_, panels_, tiles_, blocks_, runs_;  // panels_: of the result's columns
};

}  // namespace efft::cpu
