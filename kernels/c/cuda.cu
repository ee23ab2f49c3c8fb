// A GPU behind the C interface: weights on the device that was current when the model was opened, a stream for each
// session, results copied back to the host.
#include <cuda_runtime.h>

#include <memory>
#include <mutex>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../cuda/engine/eight.h"
#include "../cuda/engine/engine.h"
#include "../cuda/engine/fold.h"
#include "../cuda/engine/lanes.h"
#include "../cuda/engine/position_tables.h"
#include "backend.h"
#include "efft/cuda/for_type.cuh"
#include "efft/cuda/rows/positions.cuh"

namespace efft::c {

namespace {

using cuda::check;

// The caller's current device comes back when the call ends.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    check(cudaGetDevice(&before_), "asking for the device");
    if (before_ != device) check(cudaSetDevice(device), "choosing the device");
  }
  ~OnDevice() { cudaSetDevice(before_); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
};

using Memory = std::shared_ptr<void>;

void check_room(cudaError_t error) {
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    throw std::bad_alloc();
  }
  check(error, "allocating device memory");
}

Memory on_device(size_t bytes) {
  void* memory = nullptr;
  check_room(cudaMalloc(&memory, bytes == 0 ? 1 : bytes));
  return {memory, [](void* m) { cudaFree(m); }};
}

Memory copied(const void* from, int64_t bytes) {
  Memory memory = on_device(static_cast<size_t>(bytes));
  check(cudaMemcpy(memory.get(), from, static_cast<size_t>(bytes), cudaMemcpyHostToDevice), "copying weights");
  return memory;
}

class Stream {
 public:
  Stream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "making a stream"); }
  ~Stream() { cudaStreamDestroy(stream_); }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaBackend : public Backend {
 public:
  explicit CudaBackend(Folder& folder) : encoder_(folder.encoder), type_(folder.type) {
    check(cudaGetDevice(&device_), "asking for the device");
    const bool in_bytes = folder.matrix_type == Type::s8;
    if (in_bytes ? bytes_of(type_) != 2 : folder.matrix_type != type_)
      throw std::runtime_error("matrices: on a GPU they are of the tables' type, or in 8 bits beside tables in 16");
    const EncoderSpec& spec = encoder_->spec;
    cuda::buckets_of(spec);
    const int64_t row = spec.embedding * bytes_of(type_);
    word_ = copied(folder.word.get(), folder.words * row);
    position_ = copied(folder.position.get(), folder.positions * row);
    segment_ = copied(folder.segment.get(), folder.segments * row);
    matrices_ = copied(folder.matrices.get(), folder.matrix_bytes);
    vectors_ = copied(folder.vectors.get(), arena_elements(encoder_->slots, SlotKind::vector) * 4);
    words_ = static_cast<int>(folder.words);
    positions_ = static_cast<int>(folder.positions);
    segments_ = static_cast<int>(folder.segments);
    if (in_bytes) {
      prepare_eight_bits(folder.matrix_bytes);
    } else {
      prepare();
    }
    for (Bytes* bytes : {&folder.word, &folder.position, &folder.segment, &folder.matrices, &folder.vectors})
      bytes->reset();
  }

  // Sessions are gone: each holds the model. Graphs hold the weights' addresses.
  ~CudaBackend() override {
    cuda::forget(matrices_.get());
    if (eight_.eight) cuda::forget_eight_bits(matrices_.get());
  }

  std::unique_ptr<Lane> lane(int threads) const override;

  int device() const { return device_; }
  int64_t bytes_of_row() const { return encoder_->spec.hidden * bytes_of(type_); }

  cuda::Model model(Output output) const {
    const EncoderSpec& spec = encoder_->spec;
    return {encoder_,
            type_,
            false,
            word_.get(),
            spec.positions == PositionCount::none ? nullptr : position_.get(),
            spec.types ? segment_.get() : nullptr,
            words_,
            positions_,
            segments_,
            matrices_.get(),
            static_cast<const float*>(vectors_.get()),
            eight_.eight ? eight_.folded : folded_.get(),
            output,
            position_tables_.get(),
            eight_.eight};
  }

  // A stream for a session, of an earlier one where there is one: the engine keeps a workspace for each.
  std::shared_ptr<Stream> take() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_shared<Stream>();
    auto stream = std::move(free_.back());
    free_.pop_back();
    return stream;
  }
  void give(std::shared_ptr<Stream> stream) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(stream));
  }

 private:
  // What the operator's prepare_weights makes, in blocks of their own.
  void prepare() {
    const EncoderSpec& spec = encoder_->spec;
    if (bytes_of(type_) != 2 || spec.norm != NormPlace::post) return;
    const bool folds = cuda::folds(cuda::DeviceInfo::current(), spec);
    const bool tables = spec.relative == Relative::disentangled;
    const auto* vectors = static_cast<const float*>(vectors_.get());
    if (folds) folded_ = on_device(cuda::folded_bytes(*encoder_));
    if (tables) position_tables_ = on_device(static_cast<size_t>(2 * cuda::position_table_elements(*encoder_)));
    cuda::for_type(type_, [&](auto zero) {
      using T = decltype(zero);
      if constexpr (sizeof(T) == 2) {
        const auto* matrices = static_cast<const T*>(matrices_.get());
        if (folds) check(cuda::fold_weights(*encoder_, matrices, vectors, folded_.get(), nullptr), "folding weights");
        if (tables)
          check(cuda::make_position_tables(*encoder_, vectors, static_cast<T*>(position_tables_.get()), nullptr),
                "the tables of positions");
      }
    });
    check(cudaStreamSynchronize(nullptr), "preparing weights");
  }

  void prepare_eight_bits(int64_t bytes) {
    const cuda::EightBitBlock block(*encoder_, bytes, cuda::folds(cuda::DeviceInfo::current(), encoder_->spec));
    Memory made = on_device(static_cast<size_t>(block.bytes));
    cuda::prepare_eight_bits(*encoder_, type_, matrices_.get(), block, static_cast<const float*>(vectors_.get()),
                             made.get(), nullptr);
    check(cudaStreamSynchronize(nullptr), "preparing weights");
    matrices_ = std::move(made);
    eight_ = cuda::prepared_eight_bits(*encoder_, matrices_.get(), block.bytes);
  }

  std::shared_ptr<const Lowered> encoder_;
  Type type_;
  cuda::Prepared eight_{nullptr, nullptr};
  int device_ = 0, words_ = 0, positions_ = 0, segments_ = 0;
  Memory word_, position_, segment_, matrices_, vectors_, folded_, position_tables_;
  mutable std::mutex mutex_;
  mutable std::vector<std::shared_ptr<Stream>> free_;
};

class CudaLane : public Lane {
 public:
  explicit CudaLane(const CudaBackend& backend) : backend_(backend), stream_(backend.take()) {}
  ~CudaLane() override { backend_.give(std::move(stream_)); }

  void encode(const Padded& batch, Output output, void* out) override {
    const OnDevice on(backend_.device());
    const int64_t cells = batch.batch * batch.length;
    const auto bytes = static_cast<size_t>(cells) * sizeof(int64_t);
    const int64_t rows = output == Output::hidden ? cells : batch.batch;
    const auto result = static_cast<size_t>(rows * backend_.bytes_of_row());
    grow(inputs_, input_room_, 3 * bytes);
    grow(results_, result_room_, result);
    auto* at = static_cast<int64_t*>(inputs_.get());
    const cudaStream_t stream = stream_->get();
    const int64_t* from[] = {batch.ids, batch.segments, batch.mask};
    for (int i = 0; i < 3; ++i)
      check(cudaMemcpyAsync(at + i * cells, from[i], bytes, cudaMemcpyHostToDevice, stream), "copying ids");
    const cuda::Call call{
        at, at + cells, at + 2 * cells, results_.get(), static_cast<int>(batch.batch), static_cast<int>(batch.length)};
    // The memory may be freed when the stream's session is gone, so it keeps the stream.
    const auto allocate = [owner = stream_](size_t size) -> std::shared_ptr<void> {
      void* memory = nullptr;
      check_room(cudaMallocAsync(&memory, size, owner->get()));
      return {memory, [owner](void* m) { cudaFreeAsync(m, owner->get()); }};
    };
    cuda::run({backend_.model(output), call}, allocate, stream);
    check(cudaMemcpyAsync(out, results_.get(), result, cudaMemcpyDeviceToHost, stream), "copying results");
    check(cudaStreamSynchronize(stream), "encoding");
  }

 private:
  // No call is under way: each ends by waiting for its stream.
  static void grow(Memory& memory, size_t& room, size_t bytes) {
    if (bytes <= room) return;
    memory.reset();
    room = 0;
    memory = on_device(bytes + bytes / 4);
    room = bytes + bytes / 4;
  }

  const CudaBackend& backend_;
  std::shared_ptr<Stream> stream_;
  Memory inputs_, results_;
  size_t input_room_ = 0, result_room_ = 0;
};

std::unique_ptr<Lane> CudaBackend::lane(int /*threads*/) const {
  const OnDevice on(device_);
  return std::make_unique<CudaLane>(*this);
}

}  // namespace

std::unique_ptr<Backend> make_backend(Folder& folder) { return std::make_unique<CudaBackend>(folder); }

const char* device_name() { return "cuda"; }

}  // namespace efft::c
