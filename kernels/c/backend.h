// What a device does for the C interface: a library has one, cpu.cpp or cuda.cu.
#pragma once

#include <memory>

#include "folder.h"

namespace efft::c {

// A batch in the shape that the engines take: [batch, length], zeros on pads. On the host.
struct Padded {
  const int64_t* ids;
  const int64_t* segments;
  const int64_t* mask;
  int64_t batch, length;
};

// One session's: used by one thread at a time.
class Lane {
 public:
  virtual ~Lane() = default;
  // Writes [batch, length, hidden] or [batch, hidden] in the model's type to `out` on the host. Throws
  // std::runtime_error.
  virtual void encode(const Padded& batch, Output output, void* out) = 0;
};

// A model on the device; only read once it is made.
class Backend {
 public:
  virtual ~Backend() = default;
  // The backend must outlive it. threads > 0.
  virtual std::unique_ptr<Lane> lane(int threads) const = 0;
};

// Takes what it needs out of the folder's weights. Throws std::runtime_error in one line.
std::unique_ptr<Backend> make_backend(Folder& folder);

const char* device_name();

}  // namespace efft::c
