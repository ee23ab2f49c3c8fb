// Which tokens are valid, where they lie, and whether their ids exist.
#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

#include "efft/cpu/encoder.h"

namespace efft::cpu {

Tokens unpad(const int64_t* mask, int64_t batch, int64_t length, int32_t* cu_seqlens, int32_t* rows) {
  int64_t count = 0, longest = 0;
  cu_seqlens[0] = 0;
  for (int64_t b = 0; b < batch; ++b) {
    const int64_t before = count;
    for (int64_t s = 0; s < length; ++s) {
      if (mask[b * length + s] != 0) rows[count++] = static_cast<int32_t>(b * length + s);
    }
    cu_seqlens[b + 1] = static_cast<int32_t>(count);
    longest = std::max(longest, count - before);
  }
  return {cu_seqlens, rows, count, longest};
}

namespace {

Tokens packed_tokens(const Batch& batch, int32_t* cu_seqlens, int32_t* rows) {
  int64_t longest = 0, end = 0;
  for (int64_t b = 0; b <= batch.batch; ++b) {
    const int64_t offset = batch.offsets[b * batch.stride];
    const bool last = b == batch.batch;
    if (offset < end || offset > (b == 0 ? 0 : end + batch.length) || (last && offset != batch.tokens)) {
      throw std::runtime_error("mask: of a packed batch its first column must ascend from 0 to " +
                               std::to_string(batch.tokens) + " by at most " + std::to_string(batch.length) + ", got " +
                               std::to_string(offset) + " behind " + std::to_string(end));
    }
    longest = std::max(longest, offset - end);
    cu_seqlens[b] = static_cast<int32_t>(offset);
    end = offset;
  }
  std::iota(rows, rows + batch.tokens, 0);
  return {cu_seqlens, rows, batch.tokens, longest};
}

}  // namespace

Tokens tokens_of(const Batch& batch, int32_t* cu_seqlens, int32_t* rows) {
  if (batch.packed()) return packed_tokens(batch, cu_seqlens, rows);
  return unpad(batch.mask, batch.batch, batch.length, cu_seqlens, rows);
}

void positions_of(const EncoderSpec& spec, const Batch& batch, const Tokens& tokens, int32_t* positions) {
  const auto set = [positions](int64_t token, int64_t row) {
    // No table has so many rows; check_indices says so.
    positions[token] = static_cast<int32_t>(std::min<int64_t>(row, std::numeric_limits<int32_t>::max()));
  };
  for (int64_t b = 0; b < batch.batch; ++b) {
    const int64_t begin = tokens.cu_seqlens[b], end = tokens.cu_seqlens[b + 1];
    const int64_t row = batch.packed() ? begin : b * batch.length;
    int64_t rank = 0, column = 0;  // of ids that are not the pad id, before `column`
    for (int64_t t = begin; t < end; ++t) {
      const int64_t slot = tokens.rows[t] - row;
      switch (spec.positions) {
        case PositionCount::slot:
          set(t, spec.offset + slot);
          break;
        case PositionCount::mask:
          set(t, spec.offset + t - begin);
          break;
        case PositionCount::ids:
          for (; column <= slot; ++column) rank += batch.ids[row + column] != spec.pad;
          set(t, batch.ids[row + slot] == spec.pad ? spec.pad : spec.pad + rank);
          break;
        case PositionCount::none:
          set(t, 0);
          break;
      }
    }
  }
}

std::vector<float> word_factors(const EncoderSpec& spec, const Batch& batch, const Tokens& tokens) {
  if (spec.dropout_token == EncoderSpec::kNoToken) return {};
  // Of a token's training chances, 0.15 * 0.8 were to become this id (transformers' EsmEmbeddings).
  constexpr float kept = 1.0f - 0.15f * 0.8f;
  std::vector<float> factors(tokens.count);
  const auto dropped = [&](int64_t t) { return batch.ids[tokens.rows[t]] == spec.dropout_token; };
  for (int64_t b = 0; b < batch.batch; ++b) {
    const int64_t begin = tokens.cu_seqlens[b], end = tokens.cu_seqlens[b + 1];
    int64_t count = 0;
    for (int64_t t = begin; t < end; ++t) count += dropped(t);
    const float share = static_cast<float>(count) / static_cast<float>(end - begin);
    for (int64_t t = begin; t < end; ++t) factors[t] = dropped(t) ? 0.0f : kept / (1.0f - share);
  }
  return factors;
}

namespace {

void check_index(const char* name, int64_t index, int64_t size) {
  if (index < 0 || index >= size) {
    throw std::runtime_error(std::string(name) + ": index " + std::to_string(index) +
                             " is out of range for a table of " + std::to_string(size) + " rows");
  }
}

}  // namespace

void check_indices(const Batch& batch, const Tables& tables, const Tokens& tokens, const int32_t* positions) {
  for (int64_t t = 0; t < tokens.count; ++t) {
    check_index("ids", batch.ids[tokens.rows[t]], tables.words);
    if (tables.rows.segment) check_index("segments", batch.segments[tokens.rows[t]], tables.segments);
    if (tables.rows.position) check_index("position", positions[t], tables.positions);
  }
}

}  // namespace efft::cpu
