#include <algorithm>

#include "cublaslt.h"
#include "plan.h"

namespace efft::cuda {
namespace {

struct Setting {
  cublasLtMatmulAlgoConfigAttributes_t attribute;
  size_t bytes;
};

constexpr Setting kSettings[Algorithm::kSettings] = {
    {CUBLASLT_ALGO_CONFIG_ID, 4},
    {CUBLASLT_ALGO_CONFIG_TILE_ID, 4},
    {CUBLASLT_ALGO_CONFIG_SPLITK_NUM, 4},
    {CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, 4},
    {CUBLASLT_ALGO_CONFIG_CTA_SWIZZLING, 4},
    {CUBLASLT_ALGO_CONFIG_CUSTOM_OPTION, 4},
    {CUBLASLT_ALGO_CONFIG_STAGES_ID, 4},
    {CUBLASLT_ALGO_CONFIG_INNER_SHAPE_ID, 2},
    {CUBLASLT_ALGO_CONFIG_CLUSTER_SHAPE_ID, 2},
};

cudaDataType_t data_type(DataType type) {
  return type == DataType::fp32 ? CUDA_R_32F : type == DataType::fp16 ? CUDA_R_16F : CUDA_R_16BF;
}

cublasComputeType_t compute_type(const Product& product) {
  return product.type == DataType::fp32 && product.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
}

}  // namespace

// cuBLASLt is column-major: seen so, the arrays hold w^T [inputs, outputs], x^T and y^T, and y^T = (w^T)^T x^T.
Plan::Plan(const Product& product, size_t alignment) : product_(product), alignment_(alignment) {
  const auto& lt = Cublaslt::get();
  const auto type = data_type(product.type);
  const cublasOperation_t transposed = CUBLAS_OP_T;
  check(lt.MatmulDescCreate(&operation_, compute_type(product), CUDA_R_32F), "describing a product");
  check(lt.MatmulDescSetAttribute(operation_, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed),
        "describing a product");
  check(lt.MatrixLayoutCreate(&w_, type, product.inputs, product.outputs, product.inputs), "describing weights");
  check(lt.MatrixLayoutCreate(&x_, type, product.inputs, product.rows, product.inputs), "describing an input");
  check(lt.MatrixLayoutCreate(&y_, type, product.outputs, product.rows, product.outputs), "describing an output");
}

Plan::~Plan() {
  const auto& lt = Cublaslt::get();
  for (auto layout : {w_, x_, y_}) lt.MatrixLayoutDestroy(layout);
  lt.MatmulDescDestroy(operation_);
}

std::vector<cublasLtMatmulAlgo_t> Plan::candidates(cublasLtHandle_t handle, int count) const {
  const auto& lt = Cublaslt::get();
  cublasLtMatmulPreference_t raw = nullptr;
  check(lt.MatmulPreferenceCreate(&raw), "describing a preference");
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, decltype(lt.MatmulPreferenceDestroy)> preference(
      raw, lt.MatmulPreferenceDestroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(lt.MatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value), "setting a preference");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, kMatmulWorkspaceBytes);
  const auto alignment = static_cast<uint32_t>(alignment_);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  std::vector<cublasLtMatmulHeuristicResult_t> results(count);
  int found = 0;
  check(lt.MatmulAlgoGetHeuristic(handle, operation_, w_, x_, y_, y_, preference.get(), count, results.data(), &found),
        "asking for an algorithm");
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (int i = 0; i < found; ++i) {
    if (results[i].state == CUBLAS_STATUS_SUCCESS) algorithms.push_back(results[i].algo);
  }
  if (algorithms.empty()) check(CUBLAS_STATUS_NOT_SUPPORTED, "finding an algorithm");
  return algorithms;
}

bool Plan::accepts(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm) const {
  cublasLtMatmulHeuristicResult_t result;
  const auto status = Cublaslt::get().MatmulAlgoCheck(handle, operation_, w_, x_, y_, y_, &algorithm, &result);
  return status == CUBLAS_STATUS_SUCCESS && result.workspaceSize <= kMatmulWorkspaceBytes && alignment_ >= 16;
}

bool Plan::restore(cublasLtHandle_t handle, const std::array<int64_t, Algorithm::kSettings>& settings,
                   cublasLtMatmulAlgo_t* algorithm) const {
  const auto& lt = Cublaslt::get();
  const auto type = data_type(product_.type);
  auto status = lt.MatmulAlgoInit(handle, compute_type(product_), CUDA_R_32F, type, type, type, type,
                                  static_cast<int>(settings[0]), algorithm);
  for (int i = 1; i < Algorithm::kSettings && status == CUBLAS_STATUS_SUCCESS; ++i) {
    status = lt.MatmulAlgoConfigSetAttribute(algorithm, kSettings[i].attribute, &settings[i], kSettings[i].bytes);
  }
  return status == CUBLAS_STATUS_SUCCESS && accepts(handle, *algorithm);
}

void Plan::run(cublasLtHandle_t handle, const void* x, const void* w, const void* addend, void* y, void* workspace,
               cudaStream_t stream) const {
  const float one = 1.f, zero = 0.f;
  check(Cublaslt::get().Matmul(handle, operation_, &one, w, w_, x, x_, addend != nullptr ? &one : &zero,
                               addend != nullptr ? addend : y, y_, y, y_, &algorithm, workspace, kMatmulWorkspaceBytes,
                               stream),
        "a matrix product");
}

std::array<int64_t, Algorithm::kSettings> settings_of(const cublasLtMatmulAlgo_t& algorithm) {
  std::array<int64_t, Algorithm::kSettings> settings{};
  for (int i = 0; i < Algorithm::kSettings; ++i) {
    size_t written = 0;
    check(Cublaslt::get().MatmulAlgoConfigGetAttribute(&algorithm, kSettings[i].attribute, &settings[i],
                                                       kSettings[i].bytes, &written),
          "reading an algorithm");
  }
  return settings;
}

}  // namespace efft::cuda
