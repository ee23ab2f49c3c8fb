// Walks an encoder's program with a team of threads, from ids to hidden states.
//
// Every step is a phase or a few: it cuts its work into tasks that any thread may take, and a barrier ends it. Nothing
// between the first phase and the last allocates, locks or calls the framework.
#include "efft/cpu/encoder.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "efft/cpu/buffers.h"
#include "efft/cpu/parallel.h"
#include "efft/cpu/position_tables.h"
#include "efft/cpu/schedule.h"

namespace efft::cpu {

namespace {

constexpr int64_t kRowGrain = 4;         // rows per task of row-wise phases
constexpr int64_t kQueriesPerTask = 48;  // at least, where a sequence's queries are split
constexpr int64_t kLocalQueries = 384;   // per task, where a query sees near keys only: those stay in the cache
constexpr int64_t kMeanRun = 16;         // rows that are added one after the other
constexpr int64_t kPhasesPerStep = 3;    // at most: clearing tails or rotating, the step, converting its result

const Program& program_of(const Call& call) {
  return call.output == Output::first ? call.encoder.first_rows : call.encoder.program;
}

// What a token's embedding is made with.
struct Embedded {
  const int32_t* positions;    // rows of the table
  std::vector<float> factors;  // of the words' rows; empty: 1
};

// One thread's walk through the program; all threads of the team walk the same way.
class Walk {
 public:
  Walk(const Call& call, const Tokens& tokens, const Embedded& embedded, const PositionTables& tables,
       const Buffers& buffers, Member& member)
      : call_(call),
        spec_(call.encoder.spec),
        k_(kernels()),
        tokens_(tokens),
        embedded_(embedded),
        tables_(tables),
        buffers_(buffers),
        member_(member),
        scratch_(buffers.scratch(member.thread())) {}

  void run() {
    tables_.fill(member_);
    for (const Step& step : program_of(call_).steps) take(step);
  }

 private:
  void take(const Step& step) {
    switch (step.op) {
      case Op::embed:
        return embed(step);
      case Op::linear:
        return linear(step);
      case Op::attend:
        return attend(step);
      case Op::norm:
        return normalize(step);
      case Op::gather:
        return gather(buffers_[step.input], buffers_[step.output]);
      case Op::pool:
        return pool(buffers_[step.input]);
    }
  }

  const float* vector(int slot) const { return call_.vectors + call_.encoder.slots[slot].offset; }
  Norm norm(const NormSlots& slots, int value) const {
    const int64_t width = program_of(call_).values[value].width;
    if (!slots.present()) return {nullptr, nullptr, width, 0.0f, false};
    return {vector(slots.gamma), vector(slots.beta), width, static_cast<float>(spec_.epsilon),
            spec_.normalise == NormKind::rms};
  }

  // Where row `t` of a LayerNorm goes.
  Results results(const Stored& to, int64_t t) const {
    Results r{};
    r.values = to.rows ? to.rows.floats(t) : nullptr;
    r.operand_type = to.operand.type;
    if (!to.operand) return r;
    r.operand = to.operand.at(t, 0);
    if (to.operand.type != Type::s8) return r;
    if (!r.values) r.values = reinterpret_cast<float*>(scratch_);
    r.scale = to.operand.scales + t;
    r.factors = to.factors;
    r.step = to.step;
    r.zero = to.zero;
    return r;
  }

  // f(row) for all rows of a value, whose operand's tails are cleared.
  template <typename F>
  void each_row(const Stored& to, F f) {
    member_.ranges(to.count, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        if (to.operand) to.operand.clear_tail(t);
        f(t);
      }
    });
  }

  void embed(const Step& step) {
    const Stored& to = buffers_[step.output];
    const Norm n = norm(step.norm, step.output);
    each_row(to, [&](int64_t t) {
      const int64_t at = tokens_.rows[t];
      Results r = results(to, t);
      if (!r.values) r.values = reinterpret_cast<float*>(scratch_);
      const float factor = embedded_.factors.empty() ? 1.0f : embedded_.factors[t];
      const int64_t segment = call_.batch.segments[at];
      k_.embed(call_.tables.rows, {call_.batch.ids[at], embedded_.positions[t], segment, factor}, n, r);
    });
  }

  void normalize(const Step& step) {
    const Stored &from = buffers_[step.input], &to = buffers_[step.output];
    const Norm n = norm(step.norm, step.output);
    each_row(to, [&](int64_t t) { k_.normalize(from.rows.floats(t), n, results(to, t)); });
  }

  Product product(const Step& step, const Stored& input, Part part) const {
    const Slot& slot = call_.encoder.slots[step.weight];
    const Stored& output = buffers_[step.output];
    const int64_t column = part == Part::others ? slot.queries : 0;
    Product p{};
    p.b = call_.matrices.panels(slot, part);
    const RowBlock& a = input.operand_of(p.b.type);
    p.a = a.data;
    p.a_stride = a.stride;
    p.a_scales = a.scales;
    p.bias = vector(step.bias) + column;
    p.pointwise = step.activates ? pointwise(spec_.activation) : Pointwise::none;
    if (step.residual >= 0) {
      const RowBlock& residual = buffers_[step.residual].rows;
      p.residual = residual.floats(0) + column;
      p.residual_stride = residual.stride;
    }
    p.out = output.rows.at(0, column);
    p.out_stride = output.rows.stride;
    p.out_type = output.rows.type;
    return p;
  }

  // Queries may be wanted of fewer rows than the rest; both are tasks of one phase.
  void linear(const Step& step) {
    const Stored &input = buffers_[step.input], &output = buffers_[step.output];
    const Stored& queries = step.queries >= 0 ? buffers_[step.queries] : input;
    if (output.rows.has_tail()) {
      member_.ranges(output.count, kRowGrain, [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) output.rows.clear_tail(t);
      });
    }
    const Product rest = product(step, input, Part::others), q = product(step, queries, Part::queries);
    const Grid rest_grid(format_of(rest.b.type), rest, input.count, member_.team_size());
    const Grid q_grid(format_of(q.b.type), q, queries.count, member_.team_size());
    member_.phase(rest_grid.tasks() + q_grid.tasks(), [&](int64_t task) {
      if (task < rest_grid.tasks()) {
        rest_grid.run(task, scratch_);
      } else {
        q_grid.run(task - rest_grid.tasks(), scratch_);
      }
    });
    convert(output);
  }

  // A product's or attention's result as an operand, where the next weights want another type.
  void convert(const Stored& value) {
    if (!value.operand) return;
    each_row(value, [&](int64_t t) {
      Results r{};
      r.operand = value.operand.at(t, 0);
      r.operand_type = value.operand.type;
      r.scale = value.operand.scales + t;
      r.factors = value.factors;
      r.step = value.step;
      r.zero = value.zero;
      k_.convert(value.rows.at(t, 0), value.rows.type, value.rows.width, r);
    });
  }

  static Score score_of(const Attention& a) {
    if (a.position_keys >= 0 || a.position_queries >= 0) return Score::disentangled;
    return a.local || a.relative >= 0 ? Score::relative : Score::full;
  }

  // Of a sequence's queries, where only the first ones are wanted or all; enough tasks that one long sequence occupies
  // every thread.
  int64_t queries_per_task(const Attention& attention, bool firsts) const {
    if (firsts) return 1;
    const int64_t tasks = call_.batch.batch * spec_.heads;
    const int64_t wanted = (3 * member_.team_size() + tasks - 1) / tasks;
    const int64_t most = (tokens_.longest + kQueriesPerTask - 1) / kQueriesPerTask;
    const int64_t parts = std::max<int64_t>(1, std::min(wanted, most));
    const int64_t queries = std::max<int64_t>(1, (tokens_.longest + parts - 1) / parts);
    return attention.local ? std::min(queries, std::max(kLocalQueries, spec_.window)) : queries;
  }

  void attend(const Step& step) {
    const Stored &qkv = buffers_[step.input], &context = buffers_[step.output];
    const bool firsts = program_of(call_).values[step.output].rows == Rows::sequences;
    const Score score = score_of(step.attention);
    if (step.attention.rotary >= 0) rotate(qkv, step.attention, firsts);
    if (score == Score::disentangled) tables_.pack(step.attention, member_, scratch_);
    const auto run = (qkv.rows.type == Type::bf16 ? k_.attend_bf16 : k_.attend_f32)[static_cast<int>(score)];
    const int64_t each = queries_per_task(step.attention, firsts), heads = spec_.heads;
    const int64_t parts = firsts ? 1 : (tokens_.longest + each - 1) / each;
    member_.phase(call_.batch.batch * heads * parts, [&](int64_t task) {
      const int64_t b = task / (heads * parts), head = task / parts % heads, part = task % parts;
      const int64_t begin = tokens_.cu_seqlens[b], keys = tokens_.cu_seqlens[b + 1] - begin;
      const int64_t count = firsts ? std::min<int64_t>(keys, 1) : keys;
      const int64_t first = part * each, last = std::min(first + each, count);
      if (first >= last) return;
      Attend a = head_of(qkv.rows, context.rows, head, begin, (firsts ? b : begin) + first);
      a.keys = keys;
      a.queries = last - first;
      a.first_query = first;
      tables_.complete(a, step.attention, head);
      run(a, scratch_);
    });
    convert(context);
  }

  // Queries and keys lie side by side. Where only first tokens' queries are wanted, these are of rank 0: not turned.
  void rotate(const Stored& qkv, const Attention& attention, bool firsts) {
    const int64_t heads = spec_.kv_heads + (firsts ? 0 : spec_.heads);
    member_.ranges(tokens_.count, kRowGrain, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        k_.rotate(qkv.rows.at(t, firsts ? spec_.context() : 0), qkv.rows.type,
                  tables_.rotation(attention, tables_.rank(t), heads));
      }
    });
  }

  // One head's pointers: keys from `key_row` on, queries and results from `query_row` on.
  Attend head_of(const RowBlock& qkv, const RowBlock& context, int64_t head, int64_t key_row, int64_t query_row) const {
    const int64_t size = spec_.head_size(), keys = spec_.context() + head / (spec_.heads / spec_.kv_heads) * size;
    Attend a{};
    a.query = qkv.at(query_row, head * size);
    a.query_stride = qkv.stride;
    a.key = qkv.at(key_row, keys);
    a.value = qkv.at(key_row, keys + spec_.kv_width());
    a.key_stride = qkv.stride;
    a.out = context.at(query_row, head * size);
    a.out_stride = context.stride;
    a.head_size = size;
    a.scale = static_cast<float>(spec_.scale);
    return a;
  }

  // The first token of every sequence; zeros stand for that of an empty one.
  void gather(const Stored& from, const Stored& to) {
    member_.phase(to.count, [&](int64_t b) {
      if (to.rows) copy_row(from.rows, to.rows, b);
      if (to.operand) copy_row(from.operand, to.operand, b);
    });
  }

  void copy_row(const RowBlock& from, const RowBlock& to, int64_t b) const {
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
    return static_cast<char*>(call_.out) + row * spec_.hidden * bytes_of(call_.out_type);
  }

  void write(const Stored& stream, int64_t from, int64_t row) const {
    k_.cast(stream.rows.at(from, 0), Type::f32, out_row(row), call_.out_type, spec_.hidden);
  }
  void write_zeros(int64_t row) const { std::memset(out_row(row), 0, spec_.hidden * bytes_of(call_.out_type)); }

  void pool(const Stored& stream) {
    const int64_t batch = call_.batch.batch, length = call_.batch.length;
    member_.phase(batch, [&](int64_t b) {
      const int64_t begin = tokens_.cu_seqlens[b], end = tokens_.cu_seqlens[b + 1];
      if (call_.output == Output::hidden) {
        if (call_.batch.packed()) return pad(stream, begin, end, begin, end);
        return pad(stream, b * length, (b + 1) * length, begin, end);
      }
      if (begin == end) return write_zeros(b);
      if (call_.output == Output::mean) return mean(stream, b, begin, end);
      write(stream, b, b);
    });
  }

  void pad(const Stored& stream, int64_t first, int64_t last, int64_t begin, int64_t end) const {
    for (int64_t row = first; row < last; ++row) {
      if (begin < end && tokens_.rows[begin] == row) {
        write(stream, begin++, row);
      } else {
        write_zeros(row);
      }
    }
  }

  // The sum is built in the sequence's first row, which nobody needs afterwards.
  void mean(const Stored& stream, int64_t b, int64_t begin, int64_t end) const {
    // Runs of rows, then runs of their sums: added one after the other the rows of 8,192 tokens would lose three
    // digits.
    for (int64_t apart = 1; apart < end - begin; apart *= kMeanRun) {
      for (int64_t first = begin; first < end; first += apart * kMeanRun) {
        float* sum = stream.rows.floats(first);
        for (int64_t t = first + apart; t < std::min(first + apart * kMeanRun, end); t += apart) {
          const float* row = stream.rows.floats(t);
          for (int64_t i = 0; i < spec_.hidden; ++i) sum[i] += row[i];
        }
      }
    }
    float* sum = stream.rows.floats(begin);
    for (int64_t i = 0; i < spec_.hidden; ++i) sum[i] /= static_cast<float>(end - begin);
    write(stream, begin, b);
  }

  const Call& call_;
  const EncoderSpec& spec_;
  const Kernels& k_;
  const Tokens& tokens_;
  const Embedded& embedded_;
  const PositionTables& tables_;
  const Buffers& buffers_;
  Member& member_;
  char* scratch_;
};

}  // namespace

void encode(const Call& call) {
  const Batch& batch = call.batch;
  if (batch.batch == 0) return;
  std::vector<int32_t> integers(batch.batch + 1 + 2 * batch.cells());
  int32_t* rows = integers.data() + batch.batch + 1;
  int32_t* positions = rows + batch.cells();
  const Tokens tokens = tokens_of(batch, integers.data(), rows);
  positions_of(call.encoder.spec, batch, tokens, positions);
  check_indices(batch, call.tables, tokens, positions);
  const Embedded embedded{positions, word_factors(call.encoder.spec, batch, tokens)};
  const Program& program = program_of(call);
  ThreadWorkspace workspace;
  PositionTables tables(call, tokens);
  const Buffers buffers(call, program, tokens, tables.bytes(), workspace);
  tables.place(buffers.more());
  const int64_t steps = static_cast<int64_t>(program.steps.size());
  Team::run(call.threads, kPhasesPerStep * steps + PositionTables::phases(steps),
            [&](Member& member) { Walk(call, tokens, embedded, tables, buffers, member).run(); });
}

}  // namespace efft::cpu
