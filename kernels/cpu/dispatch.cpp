// Picks the table of kernels for this processor, once.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "efft/cpu/kernels.h"

namespace efft::cpu {

extern const Kernels kernels_portable;
#if defined(__x86_64__)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512bf16;
#endif

namespace {

struct Candidate {
  const Kernels* table;
  bool runs;
};

const Kernels& choose() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  const Candidate candidates[] = {
      {&kernels_avx512bf16, bf16}, {&kernels_avx512, avx512}, {&kernels_avx2, avx2}, {&kernels_portable, true}};
#else
  const Candidate candidates[] = {{&kernels_portable, true}};
#endif
  const char* wish = std::getenv("EFFT_ISA");
  for (const Candidate& candidate : candidates) {
    if (wish ? candidate.runs && std::string(wish) == candidate.table->name : candidate.runs) return *candidate.table;
  }
  throw std::runtime_error("EFFT_ISA=" + std::string(wish) + ": unknown, or this processor cannot run it");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace efft::cpu
