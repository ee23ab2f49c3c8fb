#include "efft/cuda/attention/choose.h"

namespace efft::cuda {
namespace {

int ceil_divide(int a, int b) { return (a + b - 1) / b; }

// Tiles of `rows` rows at most, of all heads. Both bounds hold: every sequence may have the longest length, or all may
// leave a tile incomplete.
int most_tiles(const AttentionShape& s, int rows) {
  return s.heads * std::min(s.batch * ceil_divide(s.max_length, rows), s.capacity / rows + s.batch);
}

// Stages of the resident kernel: for the longest sequence, and one for each warpgroup to leave its result in.
int resident_stages(int max_length, int key_groups) {
  return std::max(key_groups, ceil_divide(max_length, attention_tiles::Resident<64>::kKeys));
}

template <int HEAD>
class Choice {
 public:
  using Ring = attention_tiles::Ring<HEAD>;
  using Resident = attention_tiles::Resident<HEAD>;

  Choice(const DeviceInfo& device, const AttentionShape& shape)
      : device_(device), s_(shape), single_tiles_(most_tiles(shape, Ring::kGroupRows)) {}

  AttentionPlan operator()() const {
    if (s_.type == Type::f32) return {AttentionKernel::simt};
    if (!device_.hopper || s_.head_size != HEAD || !s_.aligned || prefers_packed()) return {AttentionKernel::packed};
    if (spare() && s_.max_length >= Resident::kDividedLength && fits_at_once(1, 2)) return resident(1, 2);
    if (fits_at_once(1, 1)) return resident(1, 1);
    if (fits_at_once(2, 1)) return resident(2, 1);
    return ring();
  }

 private:
  // Multiprocessors are, for tiles of one warpgroup each.
  bool spare() const { return single_tiles_ <= device_.multiprocessors; }

  // Whether so many short sequences are at hand that they had better share tiles.
  bool prefers_packed() const {
    using Packed = attention_tiles::Packed;
    const int resident = device_.multiprocessors * Ring::blocks_per_multiprocessor(1);
    return s_.max_length <= Packed::kPackedLength && single_tiles_ > Packed::kPackedRounds * resident;
  }

  // Whether all blocks of the resident kernel run at once, so that none pays for its start but the first.
  bool fits_at_once(int row_groups, int key_groups) const {
    constexpr int kReservedBytes = 1024;  // of every block, by the driver
    const int stages = resident_stages(s_.max_length, key_groups);
    if (stages > Resident::kMaxStages) return false;
    const int bytes = attention_tiles::resident_shared_bytes(HEAD, row_groups, key_groups, stages) + kReservedBytes;
    const int blocks =
        std::min(Resident::blocks_per_multiprocessor(row_groups * key_groups), device_.shared_bytes / bytes);
    return most_tiles(s_, row_groups * Resident::kGroupRows) <= blocks * device_.multiprocessors;
  }

  AttentionPlan resident(int row_groups, int key_groups) const {
    return {AttentionKernel::resident, row_groups, key_groups, resident_stages(s_.max_length, key_groups)};
  }

  // Two warpgroups share what they read; while there are multiprocessors to spare, each is faster alone on one.
  AttentionPlan ring() const {
    const int groups = spare() || s_.max_length <= Ring::kGroupRows ? 1 : Ring::kMaxGroups;
    const int tiles = most_tiles(s_, groups * Ring::kGroupRows);
    const int blocks = std::min(tiles, device_.multiprocessors * Ring::blocks_per_multiprocessor(groups));
    return {AttentionKernel::ring, groups, 1, Ring::stages(spare() ? Ring::kMaxGroups : groups), blocks, tiles};
  }

  const DeviceInfo& device_;
  const AttentionShape& s_;
  const int single_tiles_;
};

}  // namespace

AttentionPlan choose_attention(const DeviceInfo& device, const AttentionShape& shape) {
  const int head = compiled_head(shape.head_size);
  return head == 32   ? Choice<32>(device, shape)()
         : head == 64 ? Choice<64>(device, shape)()
                      : Choice<128>(device, shape)();
}

}  // namespace efft::cuda
