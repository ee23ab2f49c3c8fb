#include <algorithm>
#include <tuple>
#include <utility>

#include "lanes.h"
#include "token_count.h"

namespace efft::cuda {
namespace {

constexpr size_t kMaxLanes = 32;    // streams with a workspace each; torch's own pool holds 32 a device
constexpr size_t kMaxGraphs = 128;  // of one lane

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

// What the calls of a bucket enqueue, captured.
class Graph {
 public:
  // with_front: from padding removal on; else what follows enqueue_front.
  Graph(const Model& model, const Call& call, const Bucket& bucket, const Workspace& workspace, bool with_front);

  void launch(const Call& call, const Bucket& bucket, const Workspace& workspace, cudaStream_t stream) {
    if (unpad_ != nullptr) {
      check(set_call(executable_.get(), unpad_, call, bucket.batch, workspace.unpadded), "naming the call to a graph");
    }
    check(cudaGraphLaunch(executable_.get(), stream), "launching the encoder's graph");
  }

 private:
  struct Destroy {
    void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
    void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
  };
  std::unique_ptr<CUgraph_st, Destroy> graph_;
  std::unique_ptr<CUgraphExec_st, Destroy> executable_;
  cudaGraphNode_t unpad_ = nullptr;  // of graph_; nullptr without front
};

Graph::Graph(const Model& model, const Call& call, const Bucket& bucket, const Workspace& workspace, bool with_front) {
  const CaptureStream stream;
  cudaGraph_t captured = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing the encoder");
  try {
    if (with_front) enqueue_front(model, call, bucket, workspace, {}, stream);
    enqueue_encoder(model, bucket, workspace, stream);
  } catch (...) {
    if (cudaStreamEndCapture(stream, &captured) == cudaSuccess) cudaGraphDestroy(captured);
    throw;
  }
  check(cudaStreamEndCapture(stream, &captured), "capturing the encoder");
  graph_.reset(captured);
  cudaGraphExec_t executable = nullptr;
  check(cudaGraphInstantiate(&executable, captured, 0), "instantiating the encoder's graph");
  executable_.reset(executable);
  size_t roots = 1;
  if (with_front) check(cudaGraphGetRootNodes(captured, &unpad_, &roots), "asking a graph for its root");
}

// A bucket met only once has no graph yet: capturing costs more than the launches it saves a single call.
struct Entry {
  std::unique_ptr<Graph> graph;
  uint64_t last_use = 0;
};

// Before anything is known of the mask. A batch of one is taken to have no pads.
Bucket padded_bucket(const Call& call) {
  const int64_t batch = call.batch, length = call.length;
  return bucket_for(batch, length, batch * length, batch == 1);
}

// One stream's memory and graphs. A thread holds the mutex while it enqueues a call: two threads on one stream must
// not mix their kernels, since they share the workspace.
class Lane {
 public:
  void run(const Request& request, const Allocate& allocate, cudaStream_t stream);
  int graphs() const {
    return static_cast<int>(
        std::count_if(entries_.begin(), entries_.end(), [](const auto& e) { return e.second.graph != nullptr; }));
  }

  std::mutex mutex;
  uint64_t last_use = 0;

 private:
  using Key = decltype(std::make_pair(Model().key(), Bucket().key()));

  Bucket start_and_count(const Request& request, Bucket padded, const Allocate& allocate, cudaStream_t stream);
  bool reserve(size_t bytes, const Allocate& allocate);
  Entry& entry(const Model& model, const Bucket& bucket);

  std::shared_ptr<void> memory_;
  size_t bytes_ = 0;
  TokenCount count_;
  std::map<Key, Entry> entries_;
  uint64_t clock_ = 0;
};

void Lane::run(const Request& request, const Allocate& allocate, cudaStream_t stream) {
  const auto& [model, call] = request;
  Bucket bucket = padded_bucket(call);
  const bool counts = worth_counting(model, bucket);
  if (counts) bucket = start_and_count(request, bucket, allocate, stream);
  reserve(Workspace(nullptr, model, bucket).bytes, allocate);
  const Workspace space(memory_.get(), model, bucket);
  Entry& known = entry(model, bucket);
  if (std::exchange(known.last_use, ++clock_) == 0) {
    if (!counts) enqueue_front(model, call, bucket, space, {}, stream);
    return enqueue_encoder(model, bucket, space, stream);
  }
  if (known.graph == nullptr) known.graph = std::make_unique<Graph>(model, call, bucket, space, !counts);
  known.graph->launch(call, bucket, space, stream);
}

// Enqueues the front and returns the bucket for as many tokens as the device then finds; it goes on with the embeddings
// and the first attention while the host waits.
Bucket Lane::start_and_count(const Request& request, Bucket padded, const Allocate& allocate, cudaStream_t stream) {
  const auto& [model, call] = request;
  padded.attended = attends_early(model, padded);
  reserve(Workspace(nullptr, model, padded).front_bytes, allocate);
  enqueue_front(model, call, padded, Workspace(memory_.get(), model, padded), count_.expect(), stream);
  Bucket tight = bucket_for(padded.batch, padded.length, std::max(count_.wait(stream), 1), true);
  tight.attended = padded.attended;
  if (reserve(Workspace(nullptr, model, tight).bytes, allocate)) {
    // Again, by the same kernels: a call's bits must not depend on the calls before it.
    enqueue_front(model, call, padded, Workspace(memory_.get(), model, padded), {}, stream);
  }
  return tight;
}

// Makes room for so many bytes, and never for fewer than before. Returns whether what lay in the memory is lost.
bool Lane::reserve(size_t bytes, const Allocate& allocate) {
  if (bytes <= bytes_) return false;
  entries_.clear();  // their graphs point into the old memory
  memory_.reset();
  bytes_ = 0;                              // until there is some: allocate may throw
  const size_t roomy = bytes + bytes / 4;  // larger batches soon follow large ones
  memory_ = allocate(roomy);
  bytes_ = roomy;
  return true;
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
void run_captured(const Request& request, const Allocate& allocate, cudaStream_t stream) {
  const auto& [model, call] = request;
  const Bucket bucket = padded_bucket(call);
  const auto memory = allocate(Workspace(nullptr, model, bucket).bytes);
  const Workspace space(memory.get(), model, bucket);
  enqueue_front(model, call, bucket, space, {}, stream);
  enqueue_encoder(model, bucket, space, stream);
}

}  // namespace

void run(const Request& request, const Allocate& allocate, cudaStream_t stream) {
  if (is_capturing(stream)) return run_captured(request, allocate, stream);
  const auto lane = Lanes::get().of(stream);
  const std::lock_guard lock(lane->mutex);
  lane->run(request, allocate, stream);
}

Held held() { return Lanes::get().held(); }

}  // namespace efft::cuda
