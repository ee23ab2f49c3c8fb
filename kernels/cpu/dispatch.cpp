// Picks the table of kernels for this processor, once.
#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

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
extern const Kernels kernels_amx;
#endif

namespace {

struct Candidate {
  const Kernels* table;
  bool runs;
};

#if defined(__x86_64__)
// Whether this process may use tile registers. Linux gives them to processes that ask, once for all threads; the rest
// of the processor's state is small enough to be given to everyone.
bool amx_granted() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & (bf16 | tile | int8)) != (bf16 | tile | int8)) return false;
#if defined(__linux__)
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
  return false;
#endif
}
#endif

const Kernels& choose() {
  const char* wish = std::getenv("EFFT_ISA");
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
  const bool amx = bf16 && (!wish || std::string(wish) == kernels_amx.name) && amx_granted();
  const Candidate candidates[] = {{&kernels_amx, amx},
                                  {&kernels_avx512bf16, bf16},
                                  {&kernels_avx512, avx512},
                                  {&kernels_avx2, avx2},
                                  {&kernels_portable, true}};
#else
  const Candidate candidates[] = {{&kernels_portable, true}};
#endif
  for (const Candidate& candidate : candidates) {
    if (wish && std::string(wish) != candidate.table->name) continue;
    if (candidate.runs) return *candidate.table;
    if (wish) throw std::runtime_error("EFFT_ISA=" + std::string(wish) + ": this processor cannot run it");
  }
  throw std::runtime_error("EFFT_ISA=" + std::string(wish) + " is unknown");
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace efft::cpu
