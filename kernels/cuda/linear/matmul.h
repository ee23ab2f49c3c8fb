// Matrix products of the encoder through cuBLASLt: y = x w^T, or x w^T + addend, with x [rows, inputs], w [outputs,
// inputs], y [rows, outputs], all row-major and of one type, accumulated in fp32.
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <tuple>
#include <vector>

#include "efft/types.h"

namespace efft::cuda {

// What a plan is chosen for.
struct Product {
  Type type;
  bool tf32;  // fp32 only: let the matrix units round the inputs to tf32
  int rows;
  int outputs;
  int inputs;

  auto key() const { return std::tie(type, tf32, rows, outputs, inputs); }
  bool operator<(const Product& other) const { return key() < other.key(); }
};

// One algorithm of cuBLASLt in its own terms, so that it can be written to a file and made again.
struct Algorithm {
  static constexpr int kSettings = 9;
  std::array<int64_t, kSettings> settings;  // in the order of cublasLtMatmulAlgoConfigAttributes_t
  int64_t nanoseconds;                      // measured for the product, per call
};

constexpr size_t kMatmulWorkspaceBytes = size_t{32} << 20;

class Plan;

// The products of one device. Safe under several threads.
class Matmul {
 public:
  // The instance of the current device.
  static Matmul& of_current_device();

  // Enqueues y = x w^T, plus addend [rows, outputs] unless that is nullptr. workspace: kMatmulWorkspaceBytes on the
  // device, used by one product at a time. Throws std::runtime_error when cuBLASLt refuses the product.
  void run(const Product& product, const void* x, const void* w, const void* addend, void* y, void* workspace,
           cudaStream_t stream);

  // Times up to twice `candidates` algorithms for the product on this device, keeps the fastest for run() and returns
  // it. Takes device memory for its own operands; blocks until done.
  Algorithm tune(const Product& product, int candidates);

  // Makes run() use an algorithm measured earlier. False when this cuBLASLt does not know it.
  bool use(const Product& product, const Algorithm& algorithm);

 private:
  Matmul();
  std::shared_ptr<const Plan> plan(const Product& product, size_t alignment);
  void forget(const Product& product);

  cublasLtHandle_t handle_;
  std::mutex mutex_;
  std::map<std::pair<Product, size_t>, std::shared_ptr<const Plan>> plans_;
  std::map<Product, cublasLtMatmulAlgo_t> tuned_;
};

}  // namespace efft::cuda
