#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <tuple>
#include <utility>
#include <vector>

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
  Graph(const Model& model, const Call& call, const Bucket& bucket, const Layout& layout, void* memory,
        bool with_front);

  void launch(const Call& call, const Bucket& bucket, const Layout& layout, void* memory, cudaStream_t stream) {
    if (unpad_ != nullptr) {
      check(set_call(executable_.get(), unpad_, call, bucket.batch, layout.unpadded(memory)),
            "naming the call to a graph");
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

Graph::Graph(const Model& model, const Call& call, const Bucket& bucket, const Layout& layout, void* memory,
             bool with_front) {
  const CaptureStream stream;
  cudaGraph_t captured = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capturing the encoder");
  try {
    if (with_front) enqueue_front(model, call, bucket, layout, memory, {}, stream);
    enqueue_encoder(model, bucket, layout, memory, stream);
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

// What is kept of a model and a bucket. One met only once has no graph yet: capturing costs more than the launches it
// saves a single call.
struct Entry {
  Entry(const Model& model, const Bucket& bucket)
      : model(model), layout(std::make_shared<Layout>(DeviceInfo::current(), model, bucket)) {}

  const Model model;  // keeps what its key names
  const std::shared_ptr<const Layout> layout;
  std::unique_ptr<Graph> graph;
  uint64_t last_use = 0;
  bool met = false;             // since the memory was last moved
  uint64_t no_graph_until = 0;  // by the lane's clock: the device had no room for one
  uint64_t patience = 64;       // calls until it is asked again
};

// Before anything is known of the mask. A batch of one is taken to have no pads, a packed one has none.
Bucket first_bucket(const Call& call) {
  const int64_t batch = call.batch, length = call.length;
  if (call.packed()) return bucket_for(batch, length, call.tokens, true);
  return bucket_for(batch, length, batch * length, batch == 1);
}

// One stream's memory and graphs. A thread holds the mutex while it enqueues a call: two threads on one stream must
// not mix their kernels, since they share the workspace.
class Lane {
 public:
  void run(const Request& request, const Allocate& allocate, cudaStream_t stream);
  // Drops what is kept for these matrices, and the memory where nothing is kept any more. Returns the graphs dropped.
  int forget(const void* matrices);

  std::mutex mutex;
  uint64_t last_use = 0;
  // Read by who does not hold the mutex: a thread may keep it while it waits for the device.
  std::atomic<int> graphs{0};

 private:
  using Key = decltype(std::make_pair(std::declval<Model>().key(), std::declval<Bucket>().key()));

  Bucket start_and_count(const Request& request, Bucket padded, const Allocate& allocate, cudaStream_t stream);
  bool reserve(size_t bytes, const Allocate& allocate);
  using Entries = std::map<Key, Entry>;
  Entry& entry(Entries& entries, const Model& model, const Bucket& bucket);
  Graph* graph_of(Entry& entry, const Call& call, const Bucket& bucket, bool with_front);
  void drop_graph(Entry& entry);

  std::shared_ptr<void> memory_;
  size_t bytes_ = 0;
  TokenCount count_;
  Entries entries_;
  Entries fronts_;  // of calls whose tokens are counted: layouts only
  uint64_t clock_ = 0;
};

void Lane::run(const Request& request, const Allocate& allocate, cudaStream_t stream) {
  const auto& [model, call] = request;
  Bucket bucket = first_bucket(call);
  const bool counts = !call.packed() && worth_counting(DeviceInfo::current(), model, bucket);
  if (counts) bucket = start_and_count(request, bucket, allocate, stream);
  Entry& known = entry(entries_, model, bucket);
  const Layout& layout = *known.layout;
  reserve(layout.bytes(), allocate);
  if (Graph* const graph = graph_of(known, call, bucket, !counts))
    return graph->launch(call, bucket, layout, memory_.get(), stream);
  if (!counts) enqueue_front(model, call, bucket, layout, memory_.get(), {}, stream);
  enqueue_encoder(model, bucket, layout, memory_.get(), stream);
}

// Enqueues the front and returns the bucket for as many tokens as the device then finds; it goes on with the embeddings
// and the first attention while the host waits.
Bucket Lane::start_and_count(const Request& request, Bucket padded, const Allocate& allocate, cudaStream_t stream) {
  const auto& [model, call] = request;
  padded.attended = attends_early(DeviceInfo::current(), model, padded);
  const Layout& front = *entry(fronts_, model, padded).layout;
  reserve(front.front_bytes(), allocate);
  enqueue_front(model, call, padded, front, memory_.get(), count_.expect(), stream);
  Bucket tight = bucket_for(padded.batch, padded.length, std::max(count_.wait(stream), 1), true);
  tight.attended = padded.attended;
  tight.counted = true;
  if (reserve(entry(entries_, model, tight).layout->bytes(), allocate)) {
    // Again, by the same kernels: a call's bits must not depend on the calls before it.
    enqueue_front(model, call, padded, front, memory_.get(), {}, stream);
  }
  return tight;
}

// The entry's graph from the bucket's second call on. nullptr: launch step by step. A graph that the device has no room
// for is asked for again later, and less and less often: meanwhile calls are answered without.
Graph* Lane::graph_of(Entry& entry, const Call& call, const Bucket& bucket, bool with_front) {
  if (entry.graph != nullptr) return entry.graph.get();
  if (!std::exchange(entry.met, true) || clock_ < entry.no_graph_until) return nullptr;
  try {
    entry.graph = std::make_unique<Graph>(entry.model, call, bucket, *entry.layout, memory_.get(), with_front);
    ++graphs;
  } catch (const std::runtime_error&) {
    cudaGetLastError();  // else the next launch is told of it
    entry.no_graph_until = clock_ + entry.patience;
    entry.patience *= 2;
  }
  return entry.graph.get();
}

void Lane::drop_graph(Entry& entry) {
  if (entry.graph != nullptr) --graphs;
  entry.graph.reset();
  entry.met = false;
}

int Lane::forget(const void* matrices) {
  const std::lock_guard lock(mutex);
  const int before = graphs;
  for (Entries* const entries : {&entries_, &fronts_}) {
    for (auto it = entries->begin(); it != entries->end();) {
      const bool gone = it->second.model.matrices == matrices;
      if (gone) drop_graph(it->second);
      it = gone ? entries->erase(it) : std::next(it);
    }
  }
  if (entries_.empty() && fronts_.empty()) {
    memory_.reset();
    bytes_ = 0;
  }
  return before - graphs;
}

// Makes room for so many bytes, and never for fewer than before. Returns whether what lay in the memory is lost.
bool Lane::reserve(size_t bytes, const Allocate& allocate) {
  if (bytes <= bytes_) return false;
  for (auto& [key, entry] : entries_) drop_graph(entry);  // they point into the old memory
  memory_.reset();
  bytes_ = 0;                              // until there is some: allocate may throw
  const size_t roomy = bytes + bytes / 4;  // larger batches soon follow large ones
  try {
    memory_ = allocate(roomy);
    bytes_ = roomy;
  } catch (const std::runtime_error&) {
    memory_ = allocate(bytes);
    bytes_ = bytes;
  }
  return true;
}

Entry& Lane::entry(Entries& entries, const Model& model, const Bucket& bucket) {
  const Key key{model.key(), bucket.key()};
  auto found = entries.find(key);
  if (found == entries.end()) {
    if (entries.size() >= kMaxGraphs) {
      const auto oldest = std::min_element(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
        return a.second.last_use < b.second.last_use;
      });
      drop_graph(oldest->second);
      entries.erase(oldest);
    }
    found = entries.try_emplace(key, model, bucket).first;
  }
  found->second.last_use = ++clock_;
  return found->second;
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
    for (const auto& [id, lane] : lanes_) sum.graphs += lane->graphs;
    return sum;
  }

  std::vector<std::shared_ptr<Lane>> all() {
    const std::lock_guard lock(mutex_);
    std::vector<std::shared_ptr<Lane>> lanes;
    for (const auto& [id, lane] : lanes_) lanes.push_back(lane);
    return lanes;
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
  const Bucket bucket = first_bucket(call);
  const Layout layout(DeviceInfo::current(), model, bucket);
  const auto memory = allocate(layout.bytes());
  enqueue_front(model, call, bucket, layout, memory.get(), {}, stream);
  enqueue_encoder(model, bucket, layout, memory.get(), stream);
}

}  // namespace

void run(const Request& request, const Allocate& allocate, cudaStream_t stream) {
  if (is_capturing(stream)) return run_captured(request, allocate, stream);
  const auto lane = Lanes::get().of(stream);
  const std::lock_guard lock(lane->mutex);
  lane->run(request, allocate, stream);
}

Held held() { return Lanes::get().held(); }

int forget(const void* matrices) {
  int graphs = 0;
  for (const auto& lane : Lanes::get().all()) graphs += lane->forget(matrices);
  return graphs;
}

}  // namespace efft::cuda
