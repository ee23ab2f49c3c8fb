#include <algorithm>
#include <cmath>

#include "cublaslt.h"
#include "plan.h"

namespace efft::cuda {
namespace {

struct Setting {
  cublasLtMatmulAlgoConfigAttributes_t attribute;
  size_t bytes;
};

constexpr int kSplitSetting = 2, kReductionSetting = 3;
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

// For many rows and more outputs than inputs, cuBLASLt's first choice is a large tile whose kernel hands out tiles by a
// counter in the workspace. The counter has to be cleared: a graph node of its own, 3 us before each product. The rule
// in choose() takes a smaller tile without one: QKV and up products of BERT-base at 6,144 rows 31 and 39 us instead of
// 37 and 48 within the encoder (H200, cuBLASLt 13.1, fp16). Products with fewer outputs are better off with large
// tiles.
constexpr int kManyRows = 1536;
constexpr int kProposals = 8;
constexpr float kExposedInputs = 384.f;  // one tile's start and end cost as much as so many steps of its sums
constexpr float kWaveError = 1e-3f;
constexpr float kWorthwhile = 1.05f;

// The longer the run of additions in a sum of fp32 numbers, the more it errs (H200, 16 rows, depth 1,024, mean relative
// error in 1e-8: one run 50, three, which is what the heuristic takes, 31, eight 20; PyTorch's kernel for 7 rows 11).
// For few rows a product is bound by its weights and shorter runs cost nothing; above, where PyTorch's products err as
// much as these, they do (BERT-base at 160 rows 27 %).
constexpr int kFewRows = 16;
constexpr int kLongestRun = 128;

cudaDataType_t data_type(Type type) {
  return type == Type::f32 ? CUDA_R_32F : type == Type::f16 ? CUDA_R_16F : CUDA_R_16BF;
}

cublasComputeType_t compute_type(const Product& product) {
  return product.type == Type::f32 && product.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
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

std::vector<cublasLtMatmulHeuristicResult_t> Plan::propose(cublasLtHandle_t handle, int count,
                                                           size_t most_workspace) const {
  const auto& lt = Cublaslt::get();
  cublasLtMatmulPreference_t raw = nullptr;
  check(lt.MatmulPreferenceCreate(&raw), "describing a preference");
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t, decltype(lt.MatmulPreferenceDestroy)> preference(
      raw, lt.MatmulPreferenceDestroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
    check(lt.MatmulPreferenceSetAttribute(preference.get(), attribute, &value, sizeof value), "setting a preference");
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, most_workspace);
  const auto alignment = static_cast<uint32_t>(alignment_);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, alignment);
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, alignment);
  std::vector<cublasLtMatmulHeuristicResult_t> results(count);
  int found = 0;
  const auto status =
      lt.MatmulAlgoGetHeuristic(handle, operation_, w_, x_, y_, y_, preference.get(), count, results.data(), &found);
  results.resize(status == CUBLAS_STATUS_SUCCESS ? found : 0);
  results.erase(std::remove_if(results.begin(), results.end(),
                               [](const auto& result) { return result.state != CUBLAS_STATUS_SUCCESS; }),
                results.end());
  return results;
}

std::vector<cublasLtMatmulAlgo_t> Plan::candidates(cublasLtHandle_t handle, int count) const {
  std::vector<cublasLtMatmulAlgo_t> algorithms;
  for (const size_t most_workspace : {size_t{0}, kMatmulWorkspaceBytes}) {
    for (const auto& result : propose(handle, count, most_workspace)) algorithms.push_back(result.algo);
  }
  if (algorithms.empty()) check(CUBLAS_STATUS_NOT_SUPPORTED, "finding an algorithm");
  return algorithms;
}

void Plan::choose(cublasLtHandle_t handle) {
  const auto favourite = propose(handle, 1, kMatmulWorkspaceBytes);
  if (favourite.empty()) check(CUBLAS_STATUS_NOT_SUPPORTED, "finding an algorithm");
  algorithm = favourite.front().algo;
  if (product_.type == Type::f32 && !product_.tf32 && product_.rows <= kFewRows) return shorten_runs(handle);
  const bool widens = product_.outputs > product_.inputs;
  if (product_.type == Type::f32 || product_.rows < kManyRows || !widens) return;
  const auto proposals = propose(handle, kProposals, 0);
  if (proposals.empty()) return;
  // The part of the time in which tiles are computed: a kernel takes as long as its fullest multiprocessor has tiles,
  // plus the start and the end of one tile, which no other tile hides.
  const auto busy = [this](const cublasLtMatmulHeuristicResult_t& result) {
    const float exposed = kExposedInputs / static_cast<float>(product_.inputs);
    return result.wavesCount / (std::ceil(result.wavesCount - kWaveError) + exposed);
  };
  const auto& busiest = *std::max_element(proposals.begin(), proposals.end(),
                                          [&](const auto& a, const auto& b) { return busy(a) < busy(b); });
  if (busy(busiest) <= kWorthwhile * busy(proposals.front())) return;
  algorithm = busiest.algo;
  workspace_bytes = 0;
}

void Plan::shorten_runs(cublasLtHandle_t handle) {
  int64_t splits = 1;
  while (splits * kLongestRun < product_.inputs) splits *= 2;
  auto settings = settings_of(algorithm);
  if (settings[kSplitSetting] >= splits) return;
  settings[kSplitSetting] = splits;
  settings[kReductionSetting] = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;  // the parts' sums added in fp32, in one order
  cublasLtMatmulAlgo_t made;
  restore(handle, settings, &made);  // refused where an algorithm cannot split: then the heuristic's choice stays
}

bool Plan::adopt(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& chosen) {
  cublasLtMatmulHeuristicResult_t result;
  const auto status = Cublaslt::get().MatmulAlgoCheck(handle, operation_, w_, x_, y_, y_, &chosen, &result);
  if (status != CUBLAS_STATUS_SUCCESS || result.workspaceSize > kMatmulWorkspaceBytes || alignment_ < 16) return false;
  algorithm = chosen;
  workspace_bytes = result.workspaceSize == 0 ? 0 : kMatmulWorkspaceBytes;
  return true;
}

bool Plan::restore(cublasLtHandle_t handle, const std::array<int64_t, Algorithm::kSettings>& settings,
                   cublasLtMatmulAlgo_t* made) {
  const auto& lt = Cublaslt::get();
  const auto type = data_type(product_.type);
  auto status = lt.MatmulAlgoInit(handle, compute_type(product_), CUDA_R_32F, type, type, type, type,
                                  static_cast<int>(settings[0]), made);
  for (int i = 1; i < Algorithm::kSettings && status == CUBLAS_STATUS_SUCCESS; ++i) {
    status = lt.MatmulAlgoConfigSetAttribute(made, kSettings[i].attribute, &settings[i], kSettings[i].bytes);
  }
  return status == CUBLAS_STATUS_SUCCESS && adopt(handle, *made);
}

void Plan::run(cublasLtHandle_t handle, const void* x, const void* w, const void* addend, void* y, void* workspace,
               cudaStream_t stream) const {
  const float one = 1.f, zero = 0.f;
  check(
      Cublaslt::get().Matmul(handle, operation_, &one, w, w_, x, x_, addend != nullptr ? &one : &zero,
                             addend != nullptr ? addend : y, y_, y, y_, &algorithm, workspace, workspace_bytes, stream),
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
