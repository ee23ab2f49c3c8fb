// efft.h: checks arguments, calls the device, turns exceptions into a status.
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "backend.h"
#include "errors.h"

struct efft_model {
  efft::c::Folder folder;
  std::unique_ptr<efft::c::Backend> backend;
};

namespace efft::c {

namespace {

#ifndef EFFT_VERSION
#define EFFT_VERSION "0.0.0"
#endif

constexpr int64_t kMostTokens = int64_t{1} << 31;
constexpr int kMostThreads = 1024;

// Plain memory: it needs no destructor, so that a thread may end after the library is gone.
thread_local char last_error[1024];

efft_status failed(efft_status status, const char* text) noexcept {
  std::snprintf(last_error, sizeof last_error, "%s", text);
  for (char* c = last_error; *c; ++c) {
    if (static_cast<unsigned char>(*c) < 0x20) *c = ' ';
  }
  return status;
}

template <typename Body>
efft_status guarded(efft_status otherwise, Body body) noexcept {
  try {
    body();
    return EFFT_OK;
  } catch (const Refused& error) {
    return failed(error.status(), error.what());
  } catch (const std::bad_alloc&) {
    return failed(EFFT_OUT_OF_MEMORY, "out of memory");
  } catch (const std::length_error&) {
    return failed(EFFT_OUT_OF_MEMORY, "out of memory: the batch is too large");
  } catch (const std::exception& error) {
    return failed(otherwise, error.what());
  } catch (...) {
    return failed(otherwise, "an unknown failure");
  }
}

template <typename T>
T* given(T* pointer, const char* name) {
  if (pointer == nullptr) throw bad_argument(std::string(name) + " is NULL");
  return pointer;
}

int available_cores() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? std::max(1, CPU_COUNT(&set)) : 1;
}

ElementType element_type(Type type) {
  return type == Type::f32 ? ElementType::f32 : type == Type::bf16 ? ElementType::bf16 : ElementType::f16;
}

struct Shape {
  int64_t rows, columns;
};

Shape shape_of(const Folder& folder, int32_t output, int64_t sequences, int64_t tokens) {
  const int64_t hidden = folder.encoder->spec.hidden;
  switch (output) {
    case EFFT_HIDDEN:
      return {tokens, hidden};
    case EFFT_FIRST:
    case EFFT_MEAN:
      return {sequences, hidden};
    case EFFT_LOGITS:
      if (!folder.head) throw Refused(EFFT_UNSUPPORTED, folder.name + ": the folder holds no head, so no logits");
      return {folder.head->per_token() ? tokens : sequences, folder.head->outputs()};
  }
  throw bad_argument("output is " + std::to_string(output) + ", which is none of efft_output");
}

// What the engine is asked for.
Output wanted(const Folder& folder, int32_t output) {
  if (output == EFFT_LOGITS) return folder.read;
  return output == EFFT_FIRST ? Output::first : output == EFFT_MEAN ? Output::mean : Output::hidden;
}

struct Request {
  const int64_t* ids;
  const int64_t* segments;
  const int32_t* cu_seqlens;
  int64_t sequences;

  int64_t tokens() const { return cu_seqlens[sequences]; }
  int64_t length(int64_t i) const { return int64_t{cu_seqlens[i + 1]} - cu_seqlens[i]; }
};

void check_id(const char* name, int64_t id, int64_t at, int64_t rows) {
  if (id < 0 || id >= rows)
    throw bad_argument(std::string(name) + "[" + std::to_string(at) + "] is " + std::to_string(id) +
                       ", the model has 0 to " + std::to_string(rows - 1));
}

// Returns the longest sequence.
int64_t check_request(const Folder& folder, const Request& request) {
  if (request.cu_seqlens[0] != 0) throw bad_argument("cu_seqlens does not begin with 0");
  int64_t longest = 0;
  for (int64_t i = 0; i < request.sequences; ++i) {
    const int64_t length = request.length(i);
    if (length < 0) throw bad_argument("cu_seqlens falls at " + std::to_string(i + 1));
    if (length > folder.max_tokens)
      throw bad_argument("sequence " + std::to_string(i) + " has " + std::to_string(length) +
                         " tokens, the model takes " + std::to_string(folder.max_tokens));
    longest = std::max(longest, length);
  }
  if (request.sequences * longest >= kMostTokens) throw bad_argument("more than 2^31 tokens in one batch");
  if (request.tokens() > 0) given(request.ids, "ids");
  const bool segments = folder.encoder->spec.types && request.segments != nullptr;
  for (int64_t t = 0; t < request.tokens(); ++t) {
    check_id("ids", request.ids[t], t, folder.words);
    if (segments) check_id("segments", request.segments[t], t, folder.segments);
  }
  return longest;
}

}  // namespace

}  // namespace efft::c

// Its buffers last from call to call.
struct efft_session {
  std::shared_ptr<const efft_model> model;
  std::unique_ptr<efft::c::Lane> lane;
  std::atomic<bool> busy{false};
  std::vector<int64_t> integers;  // ids, segments and mask, [batch, length] each
  std::vector<char> made;         // by the engine
  std::vector<float> rows, other;
};

namespace efft::c {

namespace {

class Turn {
 public:
  explicit Turn(std::atomic<bool>& busy) : busy_(busy) {
    if (busy_.exchange(true, std::memory_order_acquire))
      throw Refused(EFFT_BUSY, "another thread is inside a call with this session; give each thread its own");
  }
  ~Turn() { busy_.store(false, std::memory_order_release); }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic<bool>& busy_;
};

Padded pad(std::vector<int64_t>& integers, const Request& request, int64_t length, bool segments) {
  const int64_t cells = request.sequences * length;
  integers.assign(static_cast<size_t>(3 * cells), 0);
  int64_t *ids = integers.data(), *types = ids + cells, *mask = types + cells;
  for (int64_t i = 0; i < request.sequences; ++i) {
    const int64_t from = request.cu_seqlens[i], count = request.length(i), to = i * length;
    if (count == 0) continue;
    std::copy_n(request.ids + from, count, ids + to);
    if (segments) std::copy_n(request.segments + from, count, types + to);
    std::fill_n(mask + to, count, 1);
  }
  return {ids, types, mask, request.sequences, length};
}

// The engine's rows without those of pads, widened.
void collect(const efft_session& session, const Request& request, const Padded& batch, Output output, float* to) {
  const Folder& folder = session.model->folder;
  const int64_t hidden = folder.encoder->spec.hidden, bytes = bytes_of(folder.type);
  const ElementType type = element_type(folder.type);
  if (output != Output::hidden) return widen(session.made.data(), type, request.sequences * hidden, to);
  for (int64_t i = 0; i < request.sequences; ++i) {
    widen(session.made.data() + i * batch.length * hidden * bytes, type, request.length(i) * hidden,
          to + request.cu_seqlens[i] * hidden);
  }
}

void run(efft_session& session, const Request& request, int64_t length, int32_t output, float* out) {
  const Folder& folder = session.model->folder;
  const int64_t hidden = folder.encoder->spec.hidden;
  const Output asked = wanted(folder, output);
  const int64_t engine_rows = asked == Output::hidden ? request.sequences * length : request.sequences;
  const int64_t rows = asked == Output::hidden ? request.tokens() : request.sequences;
  const Padded batch = pad(session.integers, request, length, folder.encoder->spec.types && request.segments);
  const auto bytes = static_cast<size_t>(engine_rows * hidden * bytes_of(folder.type));
  session.made.resize(bytes);
  // Without a single token there is nothing to run; every row is zeros.
  if (length == 0) std::fill(session.made.begin(), session.made.end(), '\0');
  if (length > 0) session.lane->encode(batch, asked, session.made.data());
  if (output != EFFT_LOGITS) return collect(session, request, batch, asked, out);
  session.rows.resize(static_cast<size_t>(rows * hidden));
  collect(session, request, batch, asked, session.rows.data());
  const auto& made = folder.head->run(session.rows, session.other, request.cu_seqlens, request.sequences);
  std::copy(made.begin(), made.end(), out);
}

}  // namespace

}  // namespace efft::c

using namespace efft::c;

const char* efft_version(void) { return EFFT_VERSION; }

const char* efft_last_error(void) { return last_error; }

// The caller holds a model by a counted reference of its own, so that it may go before its sessions do.
using Held = std::shared_ptr<const efft_model>;

static const efft_model& read(const efft_model* model) {
  return **reinterpret_cast<const Held*>(given(model, "model"));
}

efft_status efft_model_open(const char* folder, efft_model** model) {
  return guarded(EFFT_BAD_MODEL, [&] {
    *given(model, "model") = nullptr;
    auto opened = std::make_shared<efft_model>();
    opened->folder = read_folder(given(folder, "folder"));
    opened->backend = make_backend(opened->folder);
    *model = reinterpret_cast<efft_model*>(new Held(std::move(opened)));
  });
}

void efft_model_free(efft_model* model) { delete reinterpret_cast<Held*>(model); }

efft_status efft_model_info(const efft_model* model, efft_info* info) {
  return guarded(EFFT_FAILED, [&] {
    const Folder& folder = read(model).folder;
    const size_t size = given(info, "info")->size;
    if (size < sizeof(size_t)) throw bad_argument("info->size is not set; set it to sizeof(efft_info)");
    efft_info all{};
    all.size = size;
    all.hidden = folder.encoder->spec.hidden;
    all.vocabulary = folder.words;
    all.segments = folder.encoder->spec.types ? folder.segments : 0;
    all.max_tokens = folder.max_tokens;
    all.logits = folder.head ? folder.head->outputs() : 0;
    all.per_token = folder.head && folder.head->per_token();
    all.labels = static_cast<int32_t>(folder.labels.size());
    all.name = folder.name.c_str();
    all.task = folder.task.c_str();
    all.compute = folder.compute.c_str();
    all.device = device_name();
    std::memcpy(info, &all, std::min(size, sizeof all));
  });
}

const char* efft_model_label(const efft_model* model, int64_t index) {
  if (model == nullptr) return nullptr;
  const auto& labels = read(model).folder.labels;
  return index < 0 || index >= static_cast<int64_t>(labels.size()) ? nullptr : labels[index].c_str();
}

efft_status efft_session_create(efft_model* model, int32_t threads, efft_session** session) {
  return guarded(EFFT_FAILED, [&] {
    *given(session, "session") = nullptr;
    given(model, "model");
    if (threads < 0 || threads > kMostThreads)
      throw bad_argument("threads is " + std::to_string(threads) + ", allowed are 0 to " +
                         std::to_string(kMostThreads));
    auto made = std::make_unique<efft_session>();
    made->model = *reinterpret_cast<const Held*>(model);
    made->lane = made->model->backend->lane(threads == 0 ? available_cores() : threads);
    *session = made.release();
  });
}

void efft_session_free(efft_session* session) { delete session; }

efft_status efft_output_shape(const efft_model* model, int32_t output, int64_t sequences, int64_t tokens, int64_t* rows,
                              int64_t* columns) {
  return guarded(EFFT_FAILED, [&] {
    if (sequences < 0 || tokens < 0) throw bad_argument("sequences and tokens are not from 0 on");
    const Shape shape = shape_of(read(model).folder, output, sequences, tokens);
    *given(rows, "rows") = shape.rows;
    *given(columns, "columns") = shape.columns;
  });
}

efft_status efft_encode(efft_session* session, const int64_t* ids, const int64_t* segments, const int32_t* cu_seqlens,
                        int64_t sequences, int32_t output, float* out, size_t out_elements) {
  return guarded(EFFT_FAILED, [&] {
    const Turn turn(given(session, "session")->busy);
    if (sequences < 0 || sequences >= kMostTokens) throw bad_argument("sequences is not within 0 and 2^31");
    const Request request{ids, segments, given(cu_seqlens, "cu_seqlens"), sequences};
    const Folder& folder = session->model->folder;
    shape_of(folder, output, 0, 0);  // whether there is such an output
    const int64_t longest = check_request(folder, request);
    const Shape shape = shape_of(folder, output, sequences, request.tokens());
    const auto elements = static_cast<size_t>(shape.rows * shape.columns);
    if (elements == 0) return;
    if (out_elements < elements)
      throw bad_argument("out has room for " + std::to_string(out_elements) + " elements, the result has " +
                         std::to_string(elements));
    run(*session, request, longest, output, given(out, "out"));
  });
}
