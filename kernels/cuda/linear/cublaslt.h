// cuBLASLt, found at run time where torch has it: linking it would tie the library to one place and version.
#pragma once

#include <cublasLt.h>

namespace efft::cuda {

#define EFFT_CUBLASLT_FUNCTIONS(X) \
  X(Create)                        \
  X(Destroy)                       \
  X(GetVersion)                    \
  X(Matmul)                        \
  X(MatmulDescCreate)              \
  X(MatmulDescDestroy)             \
  X(MatmulDescSetAttribute)        \
  X(MatrixLayoutCreate)            \
  X(MatrixLayoutDestroy)           \
  X(MatmulPreferenceCreate)        \
  X(MatmulPreferenceDestroy)       \
  X(MatmulPreferenceSetAttribute)  \
  X(MatmulAlgoGetHeuristic)        \
  X(MatmulAlgoInit)                \
  X(MatmulAlgoCheck)               \
  X(MatmulAlgoConfigGetAttribute)  \
  X(MatmulAlgoConfigSetAttribute)

struct Cublaslt {
#define EFFT_MEMBER(name) decltype(&cublasLt##name) name;
  EFFT_CUBLASLT_FUNCTIONS(EFFT_MEMBER)
#undef EFFT_MEMBER

  // The process's one table. Throws std::runtime_error naming what was tried when the library is not there.
  static const Cublaslt& get();
};

// Throws std::runtime_error with `what` unless the call succeeded.
void check(cublasStatus_t status, const char* what);

}  // namespace efft::cuda
