#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>

#include "efft/cuda/for_type.cuh"
#include "efft/cuda/rows/rows.cuh"
#include "eight.h"
#include "engine.h"
#include "fold.h"

namespace efft::cuda {
namespace {

constexpr char kMagic[9] = "efft-g01";
constexpr int64_t kAlignment = 256;

int64_t aligned_up(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

int64_t rows_of_matrices(const Lowered& encoder) {
  int64_t rows = 0;
  for (const Slot& slot : encoder.slots) rows += slot.kind == SlotKind::matrix ? slot.rows : 0;
  return rows;
}

// The weights that a matrix stands for, and, of integers, the sums of its rows times their scales; one warp a row.
template <typename T>
__global__ void __launch_bounds__(kWarp* kRowWarps)
    widen_kernel(const void* data, Type type, const float* scales, const float* factors, T* out, float* sums, int rows,
                 int columns) {
  const int row = warp_row();
  if (row >= rows) return;
  const int64_t start = int64_t{row} * columns;
  const float scale = type == Type::bf16 ? 1.f : scales[row];
  float sum = 0.f;
  for (int i = threadIdx.x; i < columns; i += kWarp) {
    float number;
    if (type == Type::bf16) {
      number = to_float(static_cast<const __nv_bfloat16*>(data)[start + i]);
    } else if (type == Type::s8) {
      number = static_cast<const int8_t*>(data)[start + i];
      sum += number;
    } else {
      number = static_cast<float>(static_cast<const __nv_fp8_e4m3*>(data)[start + i]);
    }
    out[start + i] = from_float<T>(type == Type::bf16 ? number : scale * number * factors[i]);
  }
  sum = warp_sum(sum);
  if (threadIdx.x == 0) sums[row] = scale * sum;
}

std::vector<char> on_host(const void* from, int64_t bytes) {
  std::vector<char> to(bytes);
  check(cudaMemcpy(to.data(), from, bytes, cudaMemcpyDeviceToHost), "reading the weights");
  return to;
}

bool all_ones(const float* factors, int64_t count) {
  const auto bytes = on_host(factors, 4 * count);
  const auto* const first = reinterpret_cast<const float*>(bytes.data());
  return std::all_of(first, first + count, [](float factor) { return factor == 1.f; });
}

// The archived form's matrices at `archive`, by slot: nothing for other slots.
std::vector<WeightView> views(const Lowered& encoder, const char* archive, int64_t bytes) {
  const auto table = on_host(archive, std::min(bytes, quantised_table_bytes(encoder)));
  const auto matrices = quantised_matrices(encoder, table.data(), archive, bytes);
  std::vector<WeightView> all(encoder.slots.size());
  for (size_t i = 0; i < all.size(); ++i) {
    if (encoder.slots[i].kind == SlotKind::matrix) all[i] = matrices[encoder.slots[i].index];
  }
  return all;
}

// Calls visit(slot's index, its view, its sums) for every matrix.
template <typename Visit>
void each_matrix(const Lowered& encoder, const std::vector<WeightView>& all, float* sums, Visit&& visit) {
  for (size_t i = 0; i < all.size(); ++i) {
    if (encoder.slots[i].kind != SlotKind::matrix) continue;
    visit(i, all[i], sums);
    sums += all[i].outputs;
  }
}

EightBitTrailer trailer_of(const void* block, int64_t bytes) {
  EightBitTrailer trailer{};
  if (bytes < int64_t{sizeof trailer}) return trailer;
  const auto raw = on_host(static_cast<const char*>(block) + bytes - sizeof trailer, sizeof trailer);
  std::memcpy(&trailer, raw.data(), sizeof trailer);
  return trailer;
}

// Whether a trailer is that of a block of so many bytes for this encoder.
bool fits(const Lowered& encoder, const EightBitTrailer& trailer, int64_t bytes) {
  if (std::memcmp(trailer.magic, kMagic, sizeof trailer.magic) != 0) return false;
  if (trailer.archive_bytes < 0 || trailer.archive_bytes > bytes) return false;
  const EightBitBlock block(encoder, trailer.archive_bytes, trailer.folded != 0);
  return block.bytes == bytes && std::memcmp(&block.trailer, &trailer, sizeof trailer) == 0;
}

Prepared read(const Lowered& encoder, const EightBitTrailer& trailer, const void* block) {
  const char* const base = static_cast<const char*>(block);
  auto eight = std::make_shared<EightBits>();
  eight->slots.resize(encoder.slots.size());
  const auto all = views(encoder, base + trailer.archive, trailer.archive_bytes);
  auto* const sums = reinterpret_cast<float*>(const_cast<char*>(base) + trailer.sums);
  each_matrix(encoder, all, sums, [&](size_t i, const WeightView& view, const float* own) {
    if (bytes_of(view.type) != 1) return;
    const float* const factors = all_ones(view.factors, view.inputs) ? nullptr : view.factors;
    eight->slots[i] = {view.type, view.data, view.scales, own, factors, {view.step, view.zero}};
    eight->widest = std::max(eight->widest, view.inputs);
  });
  return {std::move(eight), trailer.folded == 0 ? nullptr : base + trailer.folded};
}

// By the block's address: a call must not read the device to learn what its weights are.
struct Known {
  std::mutex mutex;
  std::map<const void*, std::pair<int64_t, Prepared>> blocks;

  static Known& get() {
    static auto* known = new Known;
    return *known;
  }
};

}  // namespace

EightBitBlock::EightBitBlock(const Lowered& encoder, int64_t archive_bytes, bool folds) : trailer{} {
  int64_t next = 0;
  const auto take = [&next](int64_t size) {
    const int64_t at = next;
    next += aligned_up(size);
    return at;
  };
  std::memcpy(trailer.magic, kMagic, sizeof trailer.magic);
  take(2 * arena_elements(encoder.slots, SlotKind::matrix));
  if (folds) trailer.folded = take(static_cast<int64_t>(folded_bytes(encoder)));
  trailer.archive = take(archive_bytes);
  trailer.archive_bytes = archive_bytes;
  trailer.sums = take(4 * rows_of_matrices(encoder));
  bytes = next + static_cast<int64_t>(sizeof trailer);
}

int64_t archived_bytes(const Lowered& encoder, const void* bytes, int64_t size) {
  const auto head = on_host(bytes, std::min<int64_t>(size, sizeof(QuantisedHeader)));
  if (is_quantised(head.data(), size)) return size;
  if (fits(encoder, trailer_of(bytes, size), size)) return 0;
  throw std::runtime_error("matrices: bytes that are neither an archived 8-bit form nor prepared for this GPU");
}

void prepare_eight_bits(const Lowered& encoder, Type type, const void* archive, const EightBitBlock& block,
                        const float* vectors, void* to, cudaStream_t stream) {
  const EightBitTrailer& trailer = block.trailer;
  char* const base = static_cast<char*>(to);
  check(cudaMemcpyAsync(base + trailer.archive, archive, trailer.archive_bytes, cudaMemcpyDeviceToDevice, stream),
        "copying the weights");
  check(cudaMemcpyAsync(base + block.bytes - sizeof trailer, &trailer, sizeof trailer, cudaMemcpyHostToDevice, stream),
        "copying the weights");
  check(cudaStreamSynchronize(stream), "copying the weights");
  const auto all = views(encoder, base + trailer.archive, trailer.archive_bytes);
  for_type(type, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 2) {
      auto* const plain = static_cast<T*>(to);
      each_matrix(
          encoder, all, reinterpret_cast<float*>(base + trailer.sums), [&](size_t i, const auto& view, float* sums) {
            const int rows = static_cast<int>(view.outputs), columns = static_cast<int>(view.inputs);
            check(launch(widen_kernel<T>, {row_grid(rows), row_block(), 0, Order::kSerial, stream}, view.data,
                         view.type, view.scales, view.factors, plain + encoder.slots[i].offset, sums, rows, columns),
                  "widening the weights");
          });
      if (trailer.folded != 0)
        check(fold_weights(encoder, static_cast<const T*>(plain), vectors, base + trailer.folded, stream),
              "folding the weights");
    } else {
      throw std::runtime_error("matrices: 8 bits on a GPU go with tables in bf16 or fp16");
    }
  });
  check(cudaStreamSynchronize(stream), "preparing the weights");
  const std::lock_guard lock(Known::get().mutex);
  Known::get().blocks[to] = {block.bytes, read(encoder, trailer, to)};
}

Prepared prepared_eight_bits(const Lowered& encoder, const void* block, int64_t bytes) {
  Known& known = Known::get();
  const std::lock_guard lock(known.mutex);
  const auto found = known.blocks.find(block);
  if (found != known.blocks.end() && found->second.first == bytes) return found->second.second;
  const EightBitTrailer trailer = trailer_of(block, bytes);
  if (!fits(encoder, trailer, bytes))
    throw std::runtime_error("matrices: 8 bits on a GPU must be prepared first (efft::prepare_weights)");
  known.blocks[block] = {bytes, read(encoder, trailer, block)};
  return known.blocks[block].second;
}

void forget_eight_bits(const void* block) {
  const std::lock_guard lock(Known::get().mutex);
  Known::get().blocks.erase(block);
}

}  // namespace efft::cuda
