#include "efft/cpu/position_tables.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "efft/cpu/workspace.h"

namespace efft::cpu {

namespace {

constexpr int64_t kAngleGrain = 16;  // rows of angles per task
}  // namespace

PositionTables::PositionTables(const Call& call, const Tokens& tokens)
    : call_(call), spec_(call.encoder.spec), type_(call.matrices.activation_type()), longest_(tokens.longest) {
  for (const Step& step : call.encoder.program.steps) {
    if (step.op != Op::attend) continue;
    if (step.attention.rotary >= 0) rotary_[step.attention.local] = step.attention.rotary;
    relative_ = step.attention.relative;
  }
  if (rotary_[0] >= 0 || rotary_[1] >= 0) {
    ranks_.resize(tokens.count);
    for (int64_t b = 0; b < call.batch.batch; ++b) {
      for (int64_t t = tokens.cu_seqlens[b]; t < tokens.cu_seqlens[b + 1]; ++t) {
        ranks_[t] = static_cast<int32_t>(t - tokens.cu_seqlens[b]);
      }
    }
  }
  const bool apart = spec_.relative == Relative::disentangled;
  if (longest_ > 0 && (apart || spec_.relative == Relative::buckets)) {
    buckets_.resize(2 * longest_ - 1);
    for (int64_t i = 0; i < 2 * longest_ - 1; ++i) {
      const int64_t bucket = bucket_of(spec_, longest_ - 1 - i);
      buckets_[i] =
          static_cast<int32_t>(apart ? std::clamp<int64_t>(bucket + spec_.span(), 0, 2 * spec_.span() - 1) : bucket);
    }
  }
  if (apart && longest_ > 0) {
    lowest_ = buckets_.back();
    rows_ = buckets_.front() - lowest_ + 1;
  }
  Carver carver;
  if (!ranks_.empty()) {
    angles_bytes_ = longest_ * spec_.rotary_size / 2 * 4;
    angles_at_ = carver.take(2 * kRotaryKinds * angles_bytes_);
  }
  if (relative_ >= 0) {
    bias_stride_ = position_columns(2 * longest_);
    bias_at_ = carver.take(spec_.heads * bias_stride_ * 4);
  }
  if (spec_.c2p) {
    head_bytes_ = position_columns(rows_) * spec_.head_size() * bytes_of(type_);
    keys_at_ = carver.take(spec_.heads * head_bytes_);
  }
  if (spec_.p2c && type_ != Type::f32) queries_at_ = carver.take(rows_ * spec_.context() * bytes_of(type_));
  bytes_ = carver.used();
}

void PositionTables::place(char* memory) { memory_ = memory; }

const float* PositionTables::vector(int slot) const { return call_.vectors + call_.encoder.slots[slot].offset; }

void PositionTables::fill(Member& member) const {
  if (!ranks_.empty()) {
    member.ranges(kRotaryKinds * longest_, kAngleGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (rotary_[i / longest_] >= 0) fill_angles(i / longest_, i % longest_);
      }
    });
  }
  if (relative_ >= 0) member.phase(spec_.heads, [&](int64_t head) { fill_bias(head); });
}

// transformers rounds halves' angles to fp32, and takes RoFormer's from a table of doubles.
void PositionTables::fill_angles(int64_t kind, int64_t rank) const {
  const int64_t pairs = spec_.rotary_size / 2;
  const float* frequencies = vector(rotary_[kind]);
  auto* cosines = reinterpret_cast<float*>(memory_ + angles_at_ + 2 * kind * angles_bytes_) + rank * pairs;
  float* sines = cosines + longest_ * pairs;
  for (int64_t i = 0; i < pairs; ++i) {
    double angle;
    if (spec_.rotary == Rotary::interleaved) {
      angle = static_cast<double>(rank) * (static_cast<double>(frequencies[i]) + frequencies[pairs + i]);
    } else {
      angle = static_cast<float>(static_cast<double>(rank) * frequencies[i]);
    }
    cosines[i] = static_cast<float>(std::cos(angle));
    sines[i] = static_cast<float>(std::sin(angle));
  }
}

void PositionTables::fill_bias(int64_t head) const {
  auto* bias = reinterpret_cast<float*>(memory_ + bias_at_) + head * bias_stride_;
  const float* table = vector(relative_);
  const float over_scale = static_cast<float>(1.0 / spec_.scale);
  for (int64_t i = 0; i < 2 * longest_ - 1; ++i) {
    const float value = spec_.relative == Relative::alibi
                            ? -table[head] * static_cast<float>(std::abs(i - longest_ + 1))
                            : table[buckets_[i] * spec_.heads + head];
    bias[i] = value * over_scale;
  }
}

void PositionTables::pack(const Attention& attention, Member& member, char* scratch) const {
  const Kernels& k = kernels();
  const int64_t size = spec_.head_size(), context = spec_.context();
  const bool keys = attention.position_keys >= 0, queries = attention.position_queries >= 0 && type_ != Type::f32;
  if (!keys && !queries) return;
  member.phase(spec_.heads, [&](int64_t head) {
    if (keys) {
      k.pack_positions(vector(attention.position_keys) + head * size, context, lowest_, rows_, size, type_, scratch,
                       memory_ + keys_at_ + head * head_bytes_);
    }
    if (!queries) return;
    const float* from = vector(attention.position_queries) + lowest_ * context;
    for (int64_t row = head * rows_ / spec_.heads; row < (head + 1) * rows_ / spec_.heads; ++row) {
      k.cast(from + row * context, Type::f32, memory_ + queries_at_ + row * context * bytes_of(type_), type_, context);
    }
  });
}

Rotation PositionTables::rotation(const Attention& attention, int64_t rank, int64_t heads) const {
  const int64_t pairs = spec_.rotary_size / 2;
  const auto* cosines =
      reinterpret_cast<const float*>(memory_ + angles_at_ + 2 * attention.local * angles_bytes_) + rank * pairs;
  return {cosines, cosines + longest_ * pairs, pairs, heads, spec_.head_size(), spec_.rotary == Rotary::interleaved};
}

void PositionTables::complete(Attend& a, const Attention& attention, int64_t head) const {
  a.reach = attention.local ? spec_.window : std::numeric_limits<int32_t>::max();
  if (attention.relative >= 0) {
    a.bias = reinterpret_cast<const float*>(memory_ + bias_at_) + head * bias_stride_ + longest_ - 1;
  }
  if (attention.position_keys < 0 && attention.position_queries < 0) return;
  a.row_of = buckets_.data() + longest_ - 1;
  a.position_near = spec_.buckets > 0 ? spec_.buckets / 2 : spec_.span() - 1;
  a.last_row = lowest_ + rows_ - 1;
  a.positions = rows_;
  if (attention.position_keys >= 0) a.position_keys = memory_ + keys_at_ + head * head_bytes_;
  if (attention.position_queries < 0) return;
  a.position_stride = spec_.context();
  const int64_t bytes = bytes_of(type_);
  const char* rows = type_ == Type::f32 ? reinterpret_cast<const char*>(vector(attention.position_queries))
                                        : memory_ + queries_at_ - lowest_ * a.position_stride * bytes;
  a.position_queries = rows + head * spec_.head_size() * bytes;
}

}  // namespace efft::cpu
