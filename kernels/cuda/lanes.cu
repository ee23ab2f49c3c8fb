#include <algorithm>
#include <tuple>
#include <utility>

#include "lanes.h"

namespace efft::cuda {
namespace {

constexpr size_t kMaxLanes = 32;    // streams with a workspace each; torch's own pool holds 32 a device
constexpr size_t kMaxGraphs = 128;  // of one lane

struct DestroyGraph {
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
using Graph = std::unique_ptr<CUgraphExec_st, DestroyGraph>;

class CaptureStream {
 public:
  CaptureStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "creating a stream"); }
  ~CaptureStream() { cudaStreamDestroy(stream_); }
  CaptureStream(const CaptureStream&) = delete;
  CaptureStream& operator=(const CaptureStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

Graph capture(const Model& model, const Bucket& bucket, const Workspace& workspace) {
  const CaptureStream stream;
  cudaGraph_t captured = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing the encoder");
  try {
    enqueue_encoder(model, bucket, workspace, stream);
  } catch (...) {
    if (cudaStreamEndCapture(stream, &captured) == cudaSuccess) cudaGraphDestroy(captured);
    throw;
  }
  check(cudaStreamEndCapture(stream, &captured), "capturing the encoder");
  cudaGraphExec_t graph = nullptr;
  const auto error = cudaGraphInstantiate(&graph, captured, 0);
  cudaGraphDestroy(captured);
  check(error, "instantiating the encoder's graph");
  return Graph(graph);
}

// A bucket met only once has no graph yet: capturing costs more than the launches it saves a single call.
struct Entry {
  Graph graph;
  uint64_t last_use = 0;
};

// One stream's memory and graphs. A thread holds the mutex while it enqueues a call: two threads on one stream must
// not mix their kernels, since they share the workspace.
class Lane {
 public:
  void run(const Request& request, const Call& call, const Allocate& allocate, cudaStream_t stream);
  int graphs() const {
    return static_cast<int>(
        std::count_if(entries_.begin(), entries_.end(), [](const auto& e) { return e.second.graph != nullptr; }));
  }

  std::mutex mutex;
  uint64_t last_use = 0;

 private:
  using Key = decltype(std::make_pair(Model().key(), Bucket().key()));

  int64_t count_tokens(const Request& request, const Call& call, Bucket bucket, const Allocate& allocate,
                       cudaStream_t stream);
  Workspace workspace(const Model& model, const Bucket& bucket, const Allocate& allocate);
  Entry& entry(const Model& model, const Bucket& bucket);

  std::shared_ptr<void> memory_;
  size_t bytes_ = 0;
  std::map<Key, Entry> entries_;
  uint64_t clock_ = 0;
};

void Lane::run(const Request& request, const Call& call, const Allocate& allocate, cudaStream_t stream) {
  const Model& model = request.model;
  const int64_t batch = request.batch, length = request.length;
  Bucket bucket = bucket_for(batch, length, batch * length, batch == 1);
  const void* unpadded_in = nullptr;
  if (worth_counting(model, bucket)) {
    bucket = bucket_for(batch, length, count_tokens(request, call, bucket, allocate, stream), true);
    unpadded_in = memory_.get();
  }
  const Workspace space = workspace(model, bucket, allocate);
  if (memory_.get() != unpadded_in) enqueue_unpad(request.mask, call, bucket, space, stream);
  Entry& known = entry(model, bucket);
  const bool first_time = std::exchange(known.last_use, ++clock_) == 0;
  if (first_time) return enqueue_encoder(model, bucket, space, stream);
  if (known.graph == nullptr) known.graph = capture(model, bucket, space);
  check(cudaGraphLaunch(known.graph.get(), stream), "launching the encoder's graph");
}

// Removes the padding and waits for the number of tokens. What unpad wrote lies where a bucket of any size has it.
int64_t Lane::count_tokens(const Request& request, const Call& call, Bucket bucket, const Allocate& allocate,
                           cudaStream_t stream) {
  bucket.tokens = 1;
  const Workspace space = workspace(request.model, bucket, allocate);
  enqueue_unpad(request.mask, call, bucket, space, stream);
  int tokens = 0;
  check(cudaMemcpyAsync(&tokens, space.tokens(bucket), sizeof tokens, cudaMemcpyDeviceToHost, stream),
        "counting tokens");
  check(cudaStreamSynchronize(stream), "counting tokens");
  return std::max(tokens, 1);
}

Workspace Lane::workspace(const Model& model, const Bucket& bucket, const Allocate& allocate) {
  const size_t needed = Workspace(nullptr, model, bucket).bytes;
  if (needed > bytes_) {
    entries_.clear();  // their graphs point into the old memory
    memory_.reset();
    bytes_ = needed + needed / 4;  // room to grow: larger batches soon follow large ones
    memory_ = allocate(bytes_);
  }
  return Workspace(memory_.get(), model, bucket);
}

Entry& Lane::entry(const Model& model, const Bucket& bucket) {
  const Key key{model.key(), bucket.key()};
  const auto found = entries_.find(key);
  if (found != entries_.end()) return found->second;
  if (entries_.size() >= kMaxGraphs) {
    entries_.erase(std::min_element(entries_.begin(), entries_.end(), [](const auto& a, const auto& b) {
      return a.second.last_use < b.second.last_use;
    }));
  }
  return entries_[key];
}

class Lanes {
 public:
  static Lanes& get() {
    static auto* lanes = new Lanes;  // outlives the CUDA context's own teardown
    return *lanes;
  }

  std::shared_ptr<Lane> of(cudaStream_t stream) {
    int device = 0;
    unsigned long long id = 0;  // a handle may come back for another stream, an id does not
    check(cudaGetDevice(&device), "asking for the device");
    check(cudaStreamGetId(stream, &id), "asking for the stream");
    const std::lock_guard lock(mutex_);
    if (lanes_.size() >= kMaxLanes && lanes_.count({device, id}) == 0) {
      lanes_.erase(std::min_element(lanes_.begin(), lanes_.end(), [](const auto& a, const auto& b) {
        return a.second->last_use < b.second->last_use;
      }));
    }
    auto& lane = lanes_[{device, id}];
    if (lane == nullptr) lane = std::make_shared<Lane>();
    lane->last_use = ++clock_;
    return lane;
  }

  Held held() {
    const std::lock_guard lock(mutex_);
    Held sum{static_cast<int>(lanes_.size()), 0};
    for (const auto& [id, lane] : lanes_) {
      const std::lock_guard lane_lock(lane->mutex);
      sum.graphs += lane->graphs();
    }
    return sum;
  }

 private:
  std::mutex mutex_;
  std::map<std::pair<int, unsigned long long>, std::shared_ptr<Lane>> lanes_;
  uint64_t clock_ = 0;
};

bool is_capturing(cudaStream_t stream) {
  auto status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(stream, &status), "asking whether the stream is captured");
  return status != cudaStreamCaptureStatusNone;
}

// The caller's graph will run at its own times, on its own streams: it gets a workspace of its own.
void run_captured(const Request& request, const Call& call, const Allocate& allocate, cudaStream_t stream) {
  const Bucket bucket = bucket_for(request.batch, request.length, request.batch * request.length, request.batch == 1);
  const auto memory = allocate(Workspace(nullptr, request.model, bucket).bytes);
  const Workspace space(memory.get(), request.model, bucket);
  enqueue_unpad(request.mask, call, bucket, space, stream);
  enqueue_encoder(request.model, bucket, space, stream);
}

}  // namespace

void run(const Request& request, const Allocate& allocate, cudaStream_t stream) {
  const Call call{request.ids, request.segments, request.out, static_cast<int>(request.batch),
                  static_cast<int>(request.length)};
  if (is_capturing(stream)) return run_captured(request, call, allocate, stream);
  const auto lane = Lanes::get().of(stream);
  const std::lock_guard lock(lane->mutex);
  lane->run(request, call, allocate, stream);
}

Held held() { return Lanes::get().held(); }

}  // namespace efft::cuda
