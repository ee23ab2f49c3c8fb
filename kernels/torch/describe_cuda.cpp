// What the CUDA library is, what it runs on and what it holds; and its products' tuned algorithms. These operators
// take no CUDA tensor, so they are defined here, beside the schemas of the CPU library.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <iterator>
#include <string>

#include "../cuda/engine/eight.h"
#include "../cuda/engine/lanes.h"
#include "../cuda/linear/cublaslt.h"
#include "../cuda/linear/matmul.h"
#include "tensors_cuda.h"

namespace efft::cuda {
namespace {

// The columns of a plan: type, tf32, rows, outputs, inputs, the algorithm's settings, nanoseconds.
constexpr int64_t kProductColumns = 5;
constexpr int64_t kPlanColumns = kProductColumns + Algorithm::kSettings + 1;
constexpr Type kPlanTypes[] = {Type::f32, Type::f16, Type::bf16};  // by the first column

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
  check_cuda("like", like);
  check_float_type("like", like);
  STD_TORCH_CHECK(rows > 0 && outputs > 0 && inputs > 0 && candidates > 0, "sizes: must be positive");
  const DeviceGuard guard(like.get_device_index());
  const Type type = type_of(like);
  const Product product{type, tf32 && type == Type::f32, static_cast<int>(rows), static_cast<int>(outputs),
                        static_cast<int>(inputs)};
  const auto algorithm = Matmul::of_current_device().tune(product, static_cast<int>(candidates));
  const Tensor plan = torch::stable::empty({kPlanColumns}, ScalarType::Long);
  int64_t* column = data<int64_t>(plan);
  const int64_t number = std::find(std::begin(kPlanTypes), std::end(kPlanTypes), type) - std::begin(kPlanTypes);
  for (int64_t value : {number, static_cast<int64_t>(product.tf32), rows, outputs, inputs}) *column++ = value;
  for (int64_t value : algorithm.settings) *column++ = value;
  *column = algorithm.nanoseconds;
  return plan;
}

// Uses plans (int64 [n, 15] on the host, as tune_product returned them) on the current device. Returns how many this
// cuBLASLt accepts.
int64_t use_plans(const Tensor& plans_in) {
  STD_TORCH_CHECK(plans_in.is_cpu(), "plans: must be on the host");
  check_type("plans", plans_in, ScalarType::Long);
  check_shape("plans", plans_in, {kAnySize, kPlanColumns});
  const auto plans = torch::stable::contiguous(plans_in);
  int64_t accepted = 0;
  for (int64_t i = 0; i < plans.size(0); ++i) {
    const int64_t* column = data<const int64_t>(plans) + i * kPlanColumns;
    STD_TORCH_CHECK(column[0] >= 0 && column[0] < std::size(kPlanTypes), "plans: unknown type ", column[0]);
    const Product product{kPlanTypes[column[0]], column[1] != 0, static_cast<int>(column[2]),
                          static_cast<int>(column[3]), static_cast<int>(column[4])};
    STD_TORCH_CHECK(product.rows > 0 && product.outputs > 0 && product.inputs > 0, "plans: sizes must be positive");
    Algorithm algorithm{};
    for (int s = 0; s < Algorithm::kSettings; ++s) algorithm.settings[s] = column[kProductColumns + s];
    algorithm.nanoseconds = column[kPlanColumns - 1];
    accepted += Matmul::of_current_device().use(product, algorithm);
  }
  return accepted;
}

// Whoever frees an encoder's weights says so here, by the address of the matrices.
int64_t forget_weights(int64_t matrices) {
  const auto* const address = reinterpret_cast<const void*>(matrices);
  const int64_t graphs = forget(address);
  forget_eight_bits(address);
  return graphs;
}

}  // namespace
}  // namespace efft::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(efft, m) {
  m.def("describe_cuda() -> str");
  m.def("tune_product(Tensor like, bool tf32, int rows, int outputs, int inputs, int candidates) -> Tensor");
  m.def("use_plans(Tensor plans) -> int");
  // Drops what is kept for the prepared matrices at this address, graphs and workspaces; returns the graphs dropped.
  m.def("forget_weights(int matrices) -> int");
}

STABLE_TORCH_LIBRARY_IMPL(efft, CompositeExplicitAutograd, m) {
  m.impl("describe_cuda", TORCH_BOX(&efft::cuda::describe_cuda));
  m.impl("tune_product", TORCH_BOX(&efft::cuda::tune_product));
  m.impl("use_plans", TORCH_BOX(&efft::cuda::use_plans));
  m.impl("forget_weights", TORCH_BOX(&efft::cuda::forget_weights));
}
