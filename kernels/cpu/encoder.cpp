// The encoder as a sequence of phases that one team of threads runs through, from ids to hidden states.
//
// Every phase cuts its work into tasks that any thread may take; a barrier ends it. Nothing between the first phase
// and the last allocates, locks or calls the framework.
#include "efft/cpu/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "efft/cpu/buffers.h"
#include "efft/cpu/parallel.h"
#include "efft/cpu/schedule.h"

namespace efft::cpu {

namespace {

constexpr int64_t kRowGrain = 4;         // rows per task of row-wise phases
constexpr int64_t kQueriesPerTask = 48;  // at least, where a sequence's queries are split

Step step_of(Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return Step::gelu;
    case Activation::gelu_tanh:
      return Step::gelu_tanh;
    case Activation::relu:
      return Step::relu;
  }
  return Step::none;
}

void set_out(Product& p, const Rows& out, int64_t column) {
  p.out = out.at(0, column);
  p.out_stride = out.stride;
  p.out_type = out.type;
}

Product product(const Rows& a, const Panels& b, const float* bias) {
  Product p{};
  p.a = a.data;
  p.a_stride = a.stride;
  p.a_scales = a.scales;
  p.b = b;
  p.bias = bias;
  return p;
}

// At most this many: four before and after the layers, ten in each.
int64_t phases(const EncoderShape& shape) { return 4 + 10 * shape.layers; }

// One thread's walk through the phases; all threads of the team walk the same way.
class Walk {
 public:
  Walk(const Call& call, const Tokens& tokens, const int32_t* positions, const Buffers& buffers, Member& member)
      : call_(call),
        shape_(call.shape),
        layout_(call.shape),
        k_(kernels()),
        tokens_(tokens),
        positions_(positions),
        buffers_(buffers),
        member_(member),
        scratch_(buffers.scratch(member.thread())) {}

  void run() {
    embed();
    Stream stream = buffers_.all;
    for (int64_t l = 0; l < shape_.layers; ++l) {
      const bool last = l + 1 == shape_.layers;
      if (shape_.pre_norm) normalize(stream, attention_norm(l), false, panels(l, Matrix::q));
      const Stream queries = last && call_.output == Output::first ? first_tokens(stream) : stream;
      project(l, stream, queries);
      attend(stream, queries);
      attention_output(l, queries);
      feed_forward(l, queries);
      stream = queries;
    }
    deliver(stream);
  }

 private:
  const float* vector(int64_t offset) const { return call_.vectors + offset; }
  Norm norm(int64_t gamma, int64_t beta) const { return {vector(gamma), vector(beta), shape_.hidden, shape_.epsilon}; }
  Norm attention_norm(int64_t l) const { return norm(layout_.attention_gamma(l), layout_.attention_beta(l)); }
  Norm output_norm(int64_t l) const { return norm(layout_.output_gamma(l), layout_.output_beta(l)); }

  Panels panels(int64_t l, Matrix matrix) const { return call_.arena.panels(l, matrix); }

  // The stream as the operand of products with `weights`. In fp32 the residual stream itself serves.
  Rows operand(const Stream& stream, const Panels& weights) const {
    if (weights.type == Type::f32 && !shape_.pre_norm) return stream.hidden;
    return stream.operand.as(weights.type);
  }

  // Where row `t` goes: into `hidden` if that is to be kept, and into `operand` unless they are one.
  Results results(const Rows& hidden, const Rows& operand, const float* factors, int64_t t, bool keep) const {
    Results r{};
    const bool rounded = operand.type == Type::s8;
    r.values = keep ? hidden.floats(t) : rounded ? reinterpret_cast<float*>(scratch_) : nullptr;
    r.operand_type = operand.type;
    if (operand.data == hidden.data) return r;
    r.operand = operand.at(t, 0);
    r.scale = rounded ? operand.scales + t : nullptr;
    r.factors = factors;
    return r;
  }

  Results kept(const Rows& hidden, int64_t t) const { return results(hidden, hidden, nullptr, t, true); }

  void multiply(const Product& p, int64_t rows) {
    const Grid grid(format_of(p.b.type), p, rows, member_.team_size());
    member_.phase(grid.tasks(), [&](int64_t task) { grid.run(task, scratch_); });
  }

  // hidden += product: the sum that the next LayerNorm takes.
  void multiply_onto(Product p, const Stream& stream) {
    p.residual = stream.hidden.floats(0);
    p.residual_stride = stream.hidden.stride;
    set_out(p, stream.hidden, 0);
    multiply(p, stream.count);
  }

  // LayerNorm of the stream, kept in it or not, as the operand of products with `next`.
  void normalize(const Stream& stream, const Norm& norm, bool keep, const Panels& next) {
    const Rows target = operand(stream, next);
    member_.ranges(stream.count, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        k_.normalize(stream.hidden.floats(t), norm, results(stream.hidden, target, next.factors, t, keep));
      }
    });
  }

  // The last LayerNorm: no product follows.
  void normalize_last(const Stream& stream, const Norm& norm) {
    member_.ranges(stream.count, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) k_.normalize(stream.hidden.floats(t), norm, kept(stream.hidden, t));
    });
  }

  // `from` as the operand of products with `weights`, rounded into `memory` where they are 8-bit.
  Rows converted(const Rows& from, const OperandMemory& memory, const Panels& weights, int64_t count) {
    if (from.type == weights.type) return from;
    const Rows to = memory.as(weights.type);
    member_.ranges(count, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        Results r{};
        r.operand = to.at(t, 0);
        r.operand_type = to.type;
        r.scale = to.scales + t;
        r.factors = weights.factors;
        k_.convert(from.at(t, 0), from.type, weights.depth, r);
      }
    });
    return to;
  }

  void embed() {
    const bool projects = shape_.projects();
    const Rows& hidden = projects ? buffers_.embedded : buffers_.all.hidden;
    const Panels next = projects ? call_.arena.projection() : panels(0, Matrix::q);
    const Rows target = projects                                    ? buffers_.embedded_operand.as(next.type)
                        : shape_.pre_norm || next.type == Type::f32 ? hidden
                                                                    : buffers_.all.operand.as(next.type);
    const Norm norm{vector(layout_.embedding_gamma()), vector(layout_.embedding_beta()), shape_.embedding,
                    shape_.epsilon};
    member_.ranges(tokens_.count, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t at = tokens_.rows[t];
        k_.embed(call_.tables.rows, call_.batch.ids[at], positions_[t], call_.batch.segments[at], norm,
                 results(hidden, target, next.factors, t, true));
      }
    });
    if (projects) project_embedding(target);
  }

  void project_embedding(const Rows& embedded) {
    const Stream& all = buffers_.all;
    Product p = product(embedded, call_.arena.projection(), vector(layout_.projection_bias()));
    set_out(p, all.hidden, 0);
    multiply(p, all.count);
    if (!shape_.pre_norm) converted(all.hidden, all.operand, panels(0, Matrix::q), all.count);
  }

  // Keys and values of all rows, queries of those whose output is wanted.
  void project(int64_t l, const Stream& stream, const Stream& queries) {
    const float* bias = vector(layout_.qkv_bias(l));
    const Panels q_weights = panels(l, Matrix::q), kv_weights = panels(l, Matrix::kv);
    Product q = product(operand(queries, q_weights), q_weights, bias);
    Product kv = product(operand(stream, kv_weights), kv_weights, bias + shape_.hidden);
    set_out(q, buffers_.qkv, 0);
    set_out(kv, buffers_.qkv, shape_.hidden);
    const Format& format = format_of(q_weights.type);
    const Grid q_grid(format, q, queries.count, member_.team_size());
    const Grid kv_grid(format, kv, stream.count, member_.team_size());
    member_.phase(q_grid.tasks() + kv_grid.tasks(), [&](int64_t task) {
      if (task < kv_grid.tasks()) {
        kv_grid.run(task, scratch_);
      } else {
        q_grid.run(task - kv_grid.tasks(), scratch_);
      }
    });
  }

  void attend(const Stream& stream, const Stream& queries) {
    const int64_t heads = shape_.heads, batch = call_.batch.batch;
    const bool firsts = queries.hidden.data != stream.hidden.data;
    // Enough tasks that one long sequence occupies every thread.
    const int64_t wanted = (3 * member_.team_size() + batch * heads - 1) / (batch * heads);
    const int64_t longest = (tokens_.longest + kQueriesPerTask - 1) / kQueriesPerTask;
    const int64_t parts = firsts ? 1 : std::max<int64_t>(1, std::min(wanted, longest));
    member_.phase(batch * heads * parts, [&](int64_t task) {
      const int64_t b = task / (heads * parts), head = task / parts % heads, part = task % parts;
      const int64_t begin = tokens_.cu_seqlens[b], keys = tokens_.cu_seqlens[b + 1] - begin;
      const int64_t count = firsts ? std::min<int64_t>(keys, 1) : keys;
      const int64_t first = part * count / parts, last = (part + 1) * count / parts;
      if (first < last) attend_head(head, begin, keys, (firsts ? b : begin) + first, last - first);
    });
  }

  void attend_head(int64_t head, int64_t key_row, int64_t keys, int64_t query_row, int64_t queries) {
    const Rows &qkv = buffers_.qkv, &context = buffers_.context;
    const int64_t size = shape_.head_size();
    Attend a{};
    a.query = qkv.at(query_row, head * size);
    a.query_stride = qkv.stride;
    a.key = qkv.at(key_row, shape_.hidden + head * size);
    a.value = qkv.at(key_row, 2 * shape_.hidden + head * size);
    a.key_stride = qkv.stride;
    a.out = context.at(query_row, head * size);
    a.out_stride = context.stride;
    a.queries = queries;
    a.keys = keys;
    a.head_size = size;
    a.scale = 1.0f / std::sqrt(static_cast<float>(size));
    (qkv.type == Type::bf16 ? k_.attend_bf16 : k_.attend_f32)(a, scratch_);
  }

  void attention_output(int64_t l, const Stream& stream) {
    const Panels weights = panels(l, Matrix::attention_output);
    // The stream's own operand has been read; its memory serves the context.
    const Rows context = converted(buffers_.context, stream.operand, weights, stream.count);
    multiply_onto(product(context, weights, vector(layout_.attention_output_bias(l))), stream);
    const Norm norm = shape_.pre_norm ? output_norm(l) : attention_norm(l);
    normalize(stream, norm, !shape_.pre_norm, panels(l, Matrix::intermediate));
  }

  void feed_forward(int64_t l, const Stream& stream) {
    const Panels up = panels(l, Matrix::intermediate), down = panels(l, Matrix::output);
    Product p = product(operand(stream, up), up, vector(layout_.intermediate_bias(l)));
    p.step = step_of(shape_.activation);
    set_out(p, buffers_.inner, 0);
    multiply(p, stream.count);
    const Rows inner = converted(buffers_.inner, buffers_.quantised_inner, down, stream.count);
    multiply_onto(product(inner, down, vector(layout_.output_bias(l))), stream);
    const bool last = l + 1 == shape_.layers;
    if (last) {
      normalize_last(stream, shape_.pre_norm ? norm(layout_.final_gamma(), layout_.final_beta()) : output_norm(l));
    } else if (!shape_.pre_norm) {
      normalize(stream, output_norm(l), true, panels(l + 1, Matrix::q));
    }
  }

  // The first token of every sequence, copied together; zeros stand for the first token of an empty one.
  Stream first_tokens(const Stream& all) {
    const Stream& firsts = buffers_.firsts;
    const Panels next = panels(shape_.layers - 1, Matrix::q);
    const Rows from = operand(all, next), to = operand(firsts, next);
    member_.phase(call_.batch.batch, [&](int64_t b) {
      copy_row(all.hidden, firsts.hidden, b);
      if (to.data != firsts.hidden.data) copy_row(from, to, b);
    });
    return firsts;
  }

  void copy_row(const Rows& from, const Rows& to, int64_t b) const {
    const int64_t begin = tokens_.cu_seqlens[b];
    const bool empty = begin == tokens_.cu_seqlens[b + 1];
    if (empty) {
      std::memset(to.at(b, 0), 0, to.row_bytes());
    } else {
      std::memcpy(to.at(b, 0), from.at(begin, 0), to.row_bytes());
    }
    if (to.type == Type::s8) to.scales[b] = empty ? RowScale{} : from.scales[begin];
  }

  char* out_row(int64_t row) const {
    return static_cast<char*>(call_.out) + row * shape_.hidden * bytes_of(call_.out_type);
  }

  void deliver(const Stream& stream) {
    const int64_t batch = call_.batch.batch, length = call_.batch.length;
    member_.phase(batch, [&](int64_t b) {
      const int64_t begin = tokens_.cu_seqlens[b], end = tokens_.cu_seqlens[b + 1];
      if (call_.output == Output::hidden) return deliver_sequence(stream, b * length, (b + 1) * length, begin, end);
      if (begin == end) {
        std::memset(out_row(b), 0, shape_.hidden * bytes_of(call_.out_type));
      } else if (call_.output == Output::mean) {
        deliver_mean(stream, b, begin, end);
      } else {
        k_.cast(stream.hidden.at(b, 0), Type::f32, out_row(b), call_.out_type, shape_.hidden);
      }
    });
  }

  void deliver_sequence(const Stream& stream, int64_t first, int64_t last, int64_t begin, int64_t end) const {
    for (int64_t row = first; row < last; ++row) {
      if (begin < end && tokens_.rows[begin] == row) {
        k_.cast(stream.hidden.at(begin++, 0), Type::f32, out_row(row), call_.out_type, shape_.hidden);
      } else {
        std::memset(out_row(row), 0, shape_.hidden * bytes_of(call_.out_type));
      }
    }
  }

  // The sum is built in the sequence's first row, which nobody needs afterwards.
  void deliver_mean(const Stream& stream, int64_t b, int64_t begin, int64_t end) const {
    auto* sum = reinterpret_cast<float*>(stream.hidden.at(begin, 0));
    for (int64_t t = begin + 1; t < end; ++t) {
      const auto* row = reinterpret_cast<const float*>(stream.hidden.at(t, 0));
      for (int64_t i = 0; i < shape_.hidden; ++i) sum[i] += row[i];
    }
    for (int64_t i = 0; i < shape_.hidden; ++i) sum[i] /= static_cast<float>(end - begin);
    k_.cast(sum, Type::f32, out_row(b), call_.out_type, shape_.hidden);
  }

  const Call& call_;
  const EncoderShape& shape_;
  const VectorLayout layout_;
  const Kernels& k_;
  const Tokens& tokens_;
  const int32_t* positions_;
  const Buffers& buffers_;
  Member& member_;
  char* scratch_;
};

}  // namespace

void encode(const Call& call) {
  const Batch& batch = call.batch;
  if (batch.batch == 0) return;
  std::vector<int32_t> integers(batch.batch + 1 + 2 * batch.batch * batch.length);
  int32_t* rows = integers.data() + batch.batch + 1;
  int32_t* positions = rows + batch.batch * batch.length;
  const Tokens tokens = unpad(batch.mask, batch.batch, batch.length, integers.data(), rows);
  positions_of(tokens, batch.batch, batch.length, call.shape.position_offset, call.shape.count_positions, positions);
  check_indices(batch, call.tables, tokens, positions);
  const Buffers buffers(call, tokens.count, tokens.longest, Workspace::mine());
  Team::run(call.threads, phases(call.shape),
            [&](Member& member) { Walk(call, tokens, positions, buffers, member).run(); });
}

}  // namespace efft::cpu
