#include <algorithm>
#include <stdexcept>

#include "cublaslt.h"
#include "matmul.h"
#include "plan.h"

namespace efft::cuda {
namespace {

constexpr size_t kMaxPlans = 4096;  // beyond what buckets can ask for; a bound all the same

size_t common_alignment(std::initializer_list<const void*> pointers) {
  uintptr_t bits = 256;
  for (const void* pointer : pointers) bits |= reinterpret_cast<uintptr_t>(pointer);
  return bits & (~bits + 1);
}

}  // namespace

Matmul& Matmul::of_current_device() {
  static std::mutex mutex;
  static auto* instances = new std::map<int, std::unique_ptr<Matmul>>;  // outlives the CUDA context's own teardown
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) throw std::runtime_error("efft: no current CUDA device");
  const std::lock_guard lock(mutex);
  auto& instance = (*instances)[device];
  if (instance == nullptr) instance.reset(new Matmul);
  return *instance;
}

Matmul::Matmul() { check(Cublaslt::get().Create(&handle_), "creating a cuBLASLt handle"); }

std::shared_ptr<const Plan> Matmul::plan(const Product& product, size_t alignment) {
  const std::lock_guard lock(mutex_);
  auto& plan = plans_[{product, alignment}];
  if (plan == nullptr) {
    auto made = std::make_shared<Plan>(product, alignment);
    const auto tuned = tuned_.find(product);
    if (tuned == tuned_.end() || !made->adopt(handle_, tuned->second)) made->choose(handle_);
    plan = made;
    if (plans_.size() > kMaxPlans) {
      const auto keep = plan;
      plans_.clear();
      return keep;
    }
  }
  return plan;
}

void Matmul::run(const Product& product, const void* x, const void* w, const void* addend, void* y, void* workspace,
                 cudaStream_t stream) {
  plan(product, common_alignment({x, w, addend, y}))->run(handle_, x, w, addend, y, workspace, stream);
}

void Matmul::forget(const Product& product) {
  for (auto it = plans_.begin(); it != plans_.end();) {
    const auto& planned = it->first.first;
    it = planned < product || product < planned ? std::next(it) : plans_.erase(it);
  }
}

bool Matmul::use(const Product& product, const Algorithm& algorithm) {
  const std::lock_guard lock(mutex_);
  cublasLtMatmulAlgo_t made;
  if (!Plan(product, 256).restore(handle_, algorithm.settings, &made)) return false;
  tuned_[product] = made;
  forget(product);
  return true;
}

}  // namespace efft::cuda
