#include <algorithm>

#include "../linear/matmul.h"
#include "efft/cuda/rows/positions.cuh"
#include "eight.h"
#include "layout.h"

namespace efft::cuda {
namespace {

constexpr size_t kAlignment = 256;

size_t aligned_up(size_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

}  // namespace

Layout::Layout(const DeviceInfo& device, const Model& model, const Bucket& bucket)
    : path(path_for(device, model, bucket)),
      eight_bits(in_eight_bits(device, model, bucket)),
      program(path == Path::small ? model.encoder->folded : model.encoder->program),
      bucket_(bucket),
      element_(bytes_of(model.type)) {
  size_t next = 0;
  const auto take = [&next](size_t size) {
    const size_t region = next;
    next += aligned_up(size);
    return region;
  };
  const size_t padded = size_t{1} * bucket.batch * bucket.length;
  call_ = take(sizeof(Call));
  cu_seqlens_ = take(4 * (size_t{1} + bucket.batch));
  rows_ = take(4 * padded);
  slots_ = take(4 * padded);
  const EncoderSpec& spec = model.spec();
  const bool rotates = spec.rotary != Rotary::none, apart = spec.relative == Relative::disentangled;
  const size_t angles = rotates ? sizeof(float2) * padded * (spec.rotary_size / 2) : 0;
  for (size_t& region : angles_) region = take(angles);
  const size_t heads = spec.relative == Relative::none ? 0 : apart ? 1 : spec.heads;
  distances_ = take(4 * heads * DistanceTable::stride_of(bucket.length));
  word_factors_ = take(spec.dropout_token == EncoderSpec::kNoToken ? 0 : 4 * bucket.batch);
  const bool rounds = apart && element_ == 2 && model.position_tables == nullptr;
  for (size_t& region : position_tables_) region = take(rounds ? element_ * 2 * spec.span() * spec.context() : 0);
  const Placement placement =
      place(program, [this](int value) { return static_cast<int64_t>(value_bytes(value)); }, {}, kAlignment);
  values_ = take(placement.bytes);
  value_at_ = placement.at;
  front_bytes_ = 0;
  for (int step = 0; step < front_steps(); ++step) {
    const int value = program.steps[step].output;
    front_bytes_ = std::max(front_bytes_, values_ + value_at_[value] + value_bytes(value));
  }
  halves_ = take(spec.gated ? element_ * bucket.tokens * 2 * spec.intermediate : 0);
  scratch_ = take(path == Path::library ? kMatmulWorkspaceBytes : 0);
  for (int buffer = 0; eight_bits && buffer < 2; ++buffer) {
    operands_[buffer] = take(static_cast<size_t>(bucket.tokens) * model.eight->widest);
    operand_scales_[buffer] = take(sizeof(RowNorm) * bucket.tokens);
  }
  bytes_ = next;
}

Unpadded Layout::unpadded(void* base) const {
  return {static_cast<int*>(at(base, cu_seqlens_)), static_cast<int*>(at(base, rows_)),
          static_cast<int*>(at(base, slots_)), static_cast<Call*>(at(base, call_))};
}

// What the front writes in an attended bucket has room for padded tokens.
size_t Layout::rows_bytes(int value) const {
  const bool early = bucket_.attended && program.values[value].made < front_steps();
  const size_t rows = early ? size_t{1} * bucket_.batch * bucket_.length : bucket_.tokens;
  return aligned_up(rows * program.values[value].width * element_);
}

size_t Layout::moments_bytes(int value) const {
  constexpr int kNarrowestTile = 8;
  return aligned_up(sizeof(Moments) * bucket_.tokens * (program.values[value].width / kNarrowestTile));
}

size_t Layout::value_bytes(int value) const {
  const size_t rows = rows_bytes(value);
  if (!program.values[value].moments) return rows;
  return rows + moments_bytes(value) + aligned_up(sizeof(RowNorm) * bucket_.tokens);
}

}  // namespace efft::cuda
