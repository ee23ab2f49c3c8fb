// What the CUDA library is, what it runs on and what it holds; and its products' tuned algorithms. These operators
// take no CUDA tensor, so they are defined here, beside the schemas of the CPU library.
#include <torch/csrc/stable/library.h>

#include <string>

#include "../cuda/linear/cublaslt.h"
#include "../cuda/engine/lanes.h"
#include "tensors_cuda.h"

namespace efft::cuda {
namespace {

// The columns of a plan: type, tf32, rows, outputs, inputs, the algorithm's settings, nanoseconds.
constexpr int64_t kProductColumns = 5;
constexpr int64_t kPlanColumns = kProductColumns + Algorithm::kSettings + 1;

#define EFFT_TEXT(...) #__VA_ARGS__
#define EFFT_EXPANDED_TEXT(...) EFFT_TEXT(__VA_ARGS__)
constexpr const char* kTargets = EFFT_EXPANDED_TEXT(__CUDA_ARCH_LIST__);

std::string describe_cuda() {
  int device = 0, driver = 0, runtime = 0;
  check(cudaGetDevice(&device), "asking for the device");
  check(cudaDriverGetVersion(&driver), "asking for the driver");
  check(cudaRuntimeGetVersion(&runtime), "asking for the runtime");
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, device), "asking for the device");
  std::string name = properties.name;
  for (char& c : name) c = c == ' ' ? '_' : c;
  const auto holding = held();
  return "device=" + name + " capability=" + std::to_string(properties.major) + "." + std::to_string(properties.minor) +
         " driver=" + std::to_string(driver) + " runtime=" + std::to_string(runtime) +
         " cublaslt=" + std::to_string(Cublaslt::get().GetVersion()) + " targets=" + kTargets +
         " streams=" + std::to_string(holding.lanes) + " graphs=" + std::to_string(holding.graphs);
}

// Searches the fastest algorithm for [rows, inputs] x [outputs, inputs]^T in the type of `like` on its device and uses
// it from then on. Returns it as int64 [15] on the host.
Tensor tune_product(const Tensor& like, bool tf32, int64_t rows, int64_t outputs, int64_t inputs, int64_t candidates) {
  constexpr const char* kName = "tune_product";
  require(like.is_cuda(), kName, "like is not on a CUDA device");
  require(rows > 0 && outputs > 0 && inputs > 0 && candidates > 0, kName, "sizes must be positive");
  const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
  const DataType type = data_type(like, kName, "like");
  const Product product{type, tf32 && type == DataType::fp32, static_cast<int>(rows), static_cast<int>(outputs),
                        static_cast<int>(inputs)};
  const auto algorithm = Matmul::of_current_device().tune(product, static_cast<int>(candidates));
  const Tensor plan = torch::stable::empty({kPlanColumns}, ScalarType::Long);
  int64_t* column = data<int64_t>(plan);
  for (int64_t value : {static_cast<int64_t>(type), static_cast<int64_t>(product.tf32), rows, outputs, inputs}) {
    *column++ = value;
  }
  for (int64_t value : algorithm.settings) *column++ = value;
  *column = algorithm.nanoseconds;
  return plan;
}

// Uses plans (int64 [n, 15] on the host, as tune_product returned them) on the current device. Returns how many this
// cuBLASLt accepts.
int64_t use_plans(const Tensor& plans_in) {
  constexpr const char* kName = "use_plans";
  require(plans_in.is_cpu() && plans_in.scalar_type() == ScalarType::Long && plans_in.dim() == 2 &&
              plans_in.size(1) == kPlanColumns,
          kName, "plans must be int64 [n, 15] on the host");
  const auto plans = torch::stable::contiguous(plans_in);
  int64_t accepted = 0;
  for (int64_t i = 0; i < plans.size(0); ++i) {
    const int64_t* column = data<const int64_t>(plans) + i * kPlanColumns;
    require(column[0] >= 0 && column[0] <= 2, kName, "unknown type in a plan");
    const Product product{static_cast<DataType>(column[0]), column[1] != 0, static_cast<int>(column[2]),
                          static_cast<int>(column[3]), static_cast<int>(column[4])};
    require(product.rows > 0 && product.outputs > 0 && product.inputs > 0, kName, "a plan's sizes must be positive");
    Algorithm algorithm{};
    for (int s = 0; s < Algorithm::kSettings; ++s) algorithm.settings[s] = column[kProductColumns + s];
    algorithm.nanoseconds = column[kPlanColumns - 1];
    accepted += Matmul::of_current_device().use(product, algorithm);
  }
  return accepted;
}

}  // namespace
}  // namespace efft::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(efft, m) {
  m.def("describe_cuda() -> str");
  m.def("tune_product(Tensor like, bool tf32, int rows, int outputs, int inputs, int candidates) -> Tensor");
  m.def("use_plans(Tensor plans) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(efft, CompositeExplicitAutograd, m) {
  m.impl("describe_cuda", TORCH_BOX(&efft::cuda::describe_cuda));
  m.impl("tune_product", TORCH_BOX(&efft::cuda::tune_product));
  m.impl("use_plans", TORCH_BOX(&efft::cuda::use_plans));
}
