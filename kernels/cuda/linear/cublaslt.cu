#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "cublaslt.h"

namespace efft::cuda {
namespace {

// torch has loaded its own copy by the time a tensor is on a GPU; a library of the same name is not loaded twice.
void* open_library() {
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
    if (void* handle = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return handle;
  }
  throw std::runtime_error("efft: cuBLASLt (libcublasLt.so.13 or .12) not found; install a CUDA build of torch");
}

void* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) throw std::runtime_error(std::string("efft: this cuBLASLt has no ") + name);
  return found;
}

Cublaslt load() {
  void* library = open_library();
  Cublaslt table;
#define EFFT_LOAD(name) table.name = reinterpret_cast<decltype(table.name)>(symbol(library, "cublasLt" #name));
  EFFT_CUBLASLT_FUNCTIONS(EFFT_LOAD)
#undef EFFT_LOAD
  return table;
}

}  // namespace

const Cublaslt& Cublaslt::get() {
  static const Cublaslt table = load();
  return table;
}

void check(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw std::runtime_error(std::string("efft: ") + what + " failed with cuBLASLt status " +
                           std::to_string(static_cast<int>(status)));
}

}  // namespace efft::cuda
