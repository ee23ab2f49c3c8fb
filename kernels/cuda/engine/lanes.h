// What the engine remembers between calls: a workspace and captured graphs for each stream.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include "engine.h"

namespace efft::cuda {

// Device memory of at least the given size, 256-byte aligned, ordered on the stream the call runs on.
using Allocate = std::function<std::shared_ptr<void>(size_t)>;

struct Request {
  Model model;
  Call call;
};

// Runs the encoder on the stream: launched step by step the first time a bucket is met or while the caller itself
// captures the stream, as a graph from then on. Safe under several threads, on any stream. Throws std::runtime_error.
void run(const Request& request, const Allocate& allocate, cudaStream_t stream);

// Streams and graphs held at present, for tests and diagnosis.
struct Held {
  int lanes;
  int graphs;
};
Held held();

// Drops the graphs that were captured for a model with these matrices, and the workspaces that served no other: call it
// when the weights go. Waits for threads that are enqueuing. Returns the number of graphs dropped.
int forget(const void* matrices);

}  // namespace efft::cuda
