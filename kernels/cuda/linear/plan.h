// The descriptors of one product and the algorithm chosen for it.
#pragma once

#include <vector>

#include "matmul.h"

namespace efft::cuda {

class Plan {
 public:
  // alignment: in bytes, common to all operands.
  Plan(const Product& product, size_t alignment);
  ~Plan();
  Plan(const Plan&) = delete;
  Plan& operator=(const Plan&) = delete;

  // Sets the algorithm to run unless a better one was measured: one that cuBLASLt's heuristic proposes (throws
  // std::runtime_error where there is none).
  void choose(cublasLtHandle_t handle);

  // Up to twice `count` algorithms worth timing, never empty (throws std::runtime_error): what the heuristic proposes
  // without a workspace and with one.
  std::vector<cublasLtMatmulAlgo_t> candidates(cublasLtHandle_t handle, int count) const;

  // Sets the algorithm to run. False where it does not run this product within the workspace.
  bool adopt(cublasLtHandle_t handle, const cublasLtMatmulAlgo_t& algorithm);

  // Makes an algorithm from its settings; false when this cuBLASLt or this product refuses them.
  bool restore(cublasLtHandle_t handle, const std::array<int64_t, Algorithm::kSettings>& settings,
               cublasLtMatmulAlgo_t* made);

  // addend may be nullptr.
  void run(cublasLtHandle_t handle, const void* x, const void* w, const void* addend, void* y, void* workspace,
           cudaStream_t stream) const;

  cublasLtMatmulAlgo_t algorithm{};
  size_t workspace_bytes = kMatmulWorkspaceBytes;  // told to cuBLASLt: some kernels use one that they could do without

 private:
  std::vector<cublasLtMatmulHeuristicResult_t> propose(cublasLtHandle_t handle, int count, size_t most_workspace) const;
  // Divides the depth further than the algorithm does, if it sums long runs.
  void shorten_runs(cublasLtHandle_t handle);

  Product product_;
  size_t alignment_;
  cublasLtMatmulDesc_t operation_ = nullptr;
  cublasLtMatrixLayout_t w_ = nullptr, x_ = nullptr, y_ = nullptr;
};

// The settings an algorithm was made with.
std::array<int64_t, Algorithm::kSettings> settings_of(const cublasLtMatmulAlgo_t& algorithm);

}  // namespace efft::cuda
