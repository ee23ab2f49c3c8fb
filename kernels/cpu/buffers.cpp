#include "efft/cpu/buffers.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "efft/cpu/schedule.h"

namespace efft::cpu {

namespace {

// Collects what is wanted, then places it all.
class Layout {
 public:
  void rows(Rows* rows, int64_t width, Type type, int64_t count) {
    // One line more than the rows: attention reads whole vectors of the last row's last head.
    const int64_t bytes = count * padded_stride(width, type) * bytes_of(type) + 64;
    rows_.push_back({rows, width, type, count, carver_.take(bytes)});
  }

  void operand(OperandMemory* memory, int64_t width, Type widest, int64_t count) {
    const int64_t bytes = count * padded_stride(width, widest) * bytes_of(widest);
    operands_.push_back({memory, width, carver_.take(bytes), carver_.take(count * sizeof(RowScale)), bytes});
  }

  int64_t bytes(int64_t count) { return carver_.take(count); }

  char* place(Workspace& workspace) const {
    char* base = workspace.reserve(carver_.used());
    for (const RowsRequest& r : rows_) {
      *r.rows = {base + r.at, padded_stride(r.width, r.type), r.type, nullptr};
      clear_padding(r);
    }
    for (const OperandRequest& o : operands_) {
      *o.memory = {base + o.at, o.width, reinterpret_cast<RowScale*>(base + o.scales_at)};
      // bf16 products run over an even depth.
      if (o.width % 2) std::memset(base + o.at, 0, o.bytes);
    }
    return base;
  }

 private:
  struct RowsRequest {
    Rows* rows;
    int64_t width;
    Type type;
    int64_t count, at;
  };
  struct OperandRequest {
    OperandMemory* memory;
    int64_t width, at, scales_at, bytes;
  };

  // The weights that meet the padding are zero; it only has to be finite.
  static void clear_padding(const RowsRequest& r) {
    if (r.width % 2 == 0 || r.type == Type::f32) return;
    for (int64_t row = 0; row < r.count; ++row) std::memset(r.rows->at(row, r.width), 0, bytes_of(r.type));
  }

  Carver carver_;
  std::vector<RowsRequest> rows_;
  std::vector<OperandRequest> operands_;
};

}  // namespace

Buffers::Buffers(const Call& call, int64_t count, int64_t longest, Workspace& workspace) {
  const EncoderShape& s = call.shape;
  const Type type = call.arena.activation_type();
  const int64_t first_count = call.output == Output::first ? call.batch.batch : 0;
  const int64_t most = std::max(count, first_count), embedded_count = s.projects() ? count : 0;

  Layout layout;
  layout.rows(&all.hidden, s.hidden, Type::f32, count);
  layout.operand(&all.operand, s.hidden, type, count);
  layout.rows(&firsts.hidden, s.hidden, Type::f32, first_count);
  layout.operand(&firsts.operand, s.hidden, type, first_count);
  layout.rows(&embedded, s.embedding, Type::f32, embedded_count);
  layout.operand(&embedded_operand, s.embedding, type, embedded_count);
  layout.rows(&qkv, 3 * s.hidden, type, most);
  layout.rows(&context, s.hidden, type, most);
  layout.rows(&inner, s.intermediate, type, most);
  layout.operand(&quantised_inner, s.intermediate, Type::s8, type == Type::f32 ? 0 : most);
  scratch_bytes_ = std::max({product_scratch_bytes(kernels().f32), product_scratch_bytes(kernels().bf16),
                             product_scratch_bytes(kernels().s8), kernels().attend_scratch(longest, s.head_size()),
                             s.hidden * 4 + 64});
  scratch_bytes_ = (scratch_bytes_ + 4095) / 4096 * 4096;
  const int64_t scratch_at = layout.bytes(call.threads * scratch_bytes_);

  scratch_ = layout.place(workspace) + scratch_at;
  all.count = count;
  firsts.count = first_count;
}

}  // namespace efft::cpu
