#include <algorithm>
#include <cstdlib>
#include <optional>
#include <stdexcept>
#include <string>

#include "efft/cuda/linear/choose.h"
#include "model.h"

namespace efft::cuda {
namespace {

// Up to this many tokens of capacity the folded chain is the faster path.
constexpr int kSmallTokens = 512;
// Up to here padded tokens cost no more than valid ones: a product over so few rows is bound by its weights, and
// waiting for the device costs more.
constexpr int kFewTokens = 256;
// Beyond, the first layer loses more on kernels chosen for padded tokens than the host's wait costs.
constexpr int kEarlyTokens = 1024;

// Rounds up to a multiple of an eighth of the power of two below, 16 at least: at most an eighth is waste.
int64_t round_tokens(int64_t tokens) {
  int64_t step = 16;
  while (step * 16 <= tokens) step *= 2;
  return (tokens + step - 1) / step * step;
}

// 1, 2, 3, 4, 6, 8, 12, ...: powers of two and the numbers half way between.
int64_t round_size(int64_t size) {
  int64_t power = 1;
  while (power < size) power *= 2;
  return power >= 4 && power / 4 * 3 >= size ? power / 4 * 3 : power;
}

// Whether every product of the encoder can run on the library's own sm_90a kernels.
bool all_own(const DeviceInfo& device, const Model& model) {
  if (model.type == Type::f32 || reinterpret_cast<uintptr_t>(model.matrices) % 16 != 0) return false;
  for (const Slot& slot : model.encoder->slots) {
    if (slot.layer > 0) break;  // as the first layer
    const bool matrix = slot.kind == SlotKind::matrix;
    if (matrix && !own_linear(device, static_cast<int>(slot.rows), static_cast<int>(slot.columns))) return false;
  }
  return true;
}

const std::string& forced_text() {
  static const std::string text = [] {
    const char* const set = std::getenv("EFFT_CUDA_PATH");
    return std::string(set == nullptr ? "" : set);
  }();
  return text;
}

std::optional<Path> forced_path() {
  const std::string& text = forced_text();
  if (text.empty()) return std::nullopt;
  if (text == "small") return Path::small;
  if (text == "hopper") return Path::hopper;
  if (text == "library" || text == "eight" || text == "sm_80" || text == "sm_89") return Path::library;
  throw std::runtime_error("efft: EFFT_CUDA_PATH must be small, hopper, library, eight, sm_80 or sm_89, not '" + text +
                           "'");
}

}  // namespace

Bucket bucket_for(int64_t batch, int64_t length, int64_t tokens, bool tight) {
  const int64_t columns = std::max<int64_t>(round_size(length), 32);
  const int64_t rows = round_size(batch);
  return {static_cast<int>(rows), static_cast<int>(columns),
          static_cast<int>(std::min(round_tokens(tokens), rows * columns)), tight, false};
}

bool folds(const DeviceInfo& device, const EncoderSpec& s) {
  // Layers that share a matrix may have different norms in front of it.
  return s.norm == NormPlace::post && s.normalise == NormKind::layer && s.layer_of.empty() && s.hidden % 64 == 0 &&
         s.intermediate % 64 == 0 && (s.head_size() == 32 || s.head_size() == 64) &&
         s.head_size() * s.heads == s.hidden &&
         own_linear(device, static_cast<int>(s.hidden), static_cast<int>(s.hidden));
}

Path path_for(const DeviceInfo& device, const Model& model, const Bucket& bucket) {
  const bool hopper = all_own(device, model);
  const bool small = hopper && model.folded != nullptr && folds(device, model.spec());
  if (const auto forced = forced_path()) {
    if (*forced == Path::small && !small)
      throw std::runtime_error(
          "efft: EFFT_CUDA_PATH=small: this needs compute capability 9.0, fp16 or bf16, LayerNorm behind each block, "
          "sizes that 64 divides, heads of 32 or 64, and prepared weights");
    if (*forced == Path::hopper && !hopper)
      throw std::runtime_error(
          "efft: EFFT_CUDA_PATH=hopper: this needs compute capability 9.0, fp16 or bf16, and sizes that 8 divides");
    return *forced;
  }
  if (small && bucket.tokens <= kSmallTokens) return Path::small;
  // Few rows: own kernels start while their predecessors end, and add biases.
  if (hopper && model.spec().gated && bucket.tokens <= kFewTokens) return Path::hopper;
  // cuBLASLt's products are the faster ones, unless most of their rows are padding.
  return hopper && !bucket.tight ? Path::hopper : Path::library;
}

bool in_eight_bits(const DeviceInfo& device, const Model& model, const Bucket& bucket) {
  if (model.eight == nullptr || model.type == Type::f32) return false;
  if (path_for(device, model, bucket) != Path::library) return false;
  return bucket.tokens > kSmallTokens || forced_text() == "eight" || forced_text().rfind("sm_", 0) == 0;
}

bool worth_counting(const DeviceInfo& device, const Model& model, const Bucket& bucket) {
  return path_for(device, model, bucket) != Path::small && bucket.batch > 1 && bucket.tokens > kFewTokens;
}

bool attends_early(const DeviceInfo& device, const Model& model, const Bucket& padded) {
  return padded.tokens <= kEarlyTokens && model.type != Type::f32 && !model.spec().projects() &&
         model.spec().norm == NormPlace::post && path_for(device, model, padded) == Path::hopper;
}

}  // namespace efft::cuda
