// The CPU behind the C interface.
#include <utility>

#include "backend.h"
#include "efft/cpu/encoder.h"
#include "efft/cpu/workspace.h"
#include "efft/quantised.h"

namespace efft::c {

namespace {

class CpuBackend : public Backend {
 public:
  explicit CpuBackend(Folder& folder)
      : encoder_(folder.encoder),
        type_(folder.type),
        word_(std::move(folder.word)),
        position_(std::move(folder.position)),
        segment_(std::move(folder.segment)),
        vectors_(std::move(folder.vectors)),
        tables_{{word_.get(), encoder_->spec.positions == PositionCount::none ? nullptr : position_.get(),
                 encoder_->spec.types ? segment_.get() : nullptr, type_, encoder_->spec.embedding},
                folder.words,
                folder.positions,
                folder.segments} {
    const void* stored = folder.matrices.get();
    const auto views = folder.matrix_type == Type::s8
                           ? quantised_matrices(*encoder_, stored, stored, folder.matrix_bytes)
                           : cpu::plain_matrices(encoder_->slots, stored, folder.matrix_type);
    block_ = memory_.reserve(static_cast<size_t>(cpu::prepared_bytes(encoder_->slots, views)));
    cpu::prepare(encoder_->slots, views, block_, 1);
    folder.matrices.reset();
  }

  std::unique_ptr<Lane> lane(int threads) const override;

  void encode(const Padded& batch, Output output, void* out, int threads) const {
    cpu::encode({*encoder_,
                 {batch.ids, batch.segments, batch.mask, batch.batch, batch.length},
                 tables_,
                 cpu::Prepared(block_),
                 reinterpret_cast<const float*>(vectors_.get()),
                 output,
                 out,
                 type_,
                 threads});
  }

 private:
  std::shared_ptr<const Lowered> encoder_;
  Type type_;
  Bytes word_, position_, segment_, vectors_;
  cpu::Tables tables_;
  cpu::Workspace memory_;
  char* block_ = nullptr;
};

// The engine keeps its workspace by thread, so that sessions which take turns on a thread share it.
class CpuLane : public Lane {
 public:
  CpuLane(const CpuBackend& backend, int threads) : backend_(backend), threads_(threads) {}
  void encode(const Padded& batch, Output output, void* out) override { backend_.encode(batch, output, out, threads_); }

 private:
  const CpuBackend& backend_;
  int threads_;
};

std::unique_ptr<Lane> CpuBackend::lane(int threads) const { return std::make_unique<CpuLane>(*this, threads); }

}  // namespace

std::unique_ptr<Backend> make_backend(Folder& folder) { return std::make_unique<CpuBackend>(folder); }

const char* device_name() { return "cpu"; }

}  // namespace efft::c
