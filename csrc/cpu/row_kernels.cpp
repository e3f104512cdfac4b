#include "row_kernels.h"

#include <cstdlib>
#include <cstring>

#include "instruction_sets.h"

namespace selavi::cpu {
namespace {

// The best level that the processor has, or a lower one that torch's own variable asks for.
int choose_level() {
#ifdef SELAVI_X86_LEVELS
  const char* wish = std::getenv("ATEN_CPU_CAPABILITY");
  const bool plain = wish != nullptr && std::strcmp(wish, "default") == 0;
  const bool no_avx512 = plain || (wish != nullptr && std::strcmp(wish, "avx2") == 0);
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512vl") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
  if (has_avx512 && !no_avx512) return 2;
  if (has_avx2 && !plain) return 1;
#endif
  return 0;
}

int level() {
  static const int chosen = choose_level();
  return chosen;
}

}  // namespace

template <typename Storage>
const RowKernels<Storage>& row_kernels() {
#ifdef SELAVI_X86_LEVELS
  if (level() == 2) return avx512::row_kernels<Storage>();
  if (level() == 1) return avx2::row_kernels<Storage>();
#endif
  return plain::row_kernels<Storage>();
}

template <typename Number>
const Gram<Number>& gram() {
#ifdef SELAVI_X86_LEVELS
  if constexpr (sizeof(Number) == sizeof(float)) {  // less precision: it only shapes a Newton step
    if (level() == 2 && __builtin_cpu_supports("avx512bf16")) return avx512_bfloat16::gram();
  }
  if (level() == 2) return avx512::gram<Number>();
  if (level() == 1) return avx2::gram<Number>();
#endif
  return plain::gram<Number>();
}

template const Gram<float>& gram<float>();
template const Gram<double>& gram<double>();
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();
template const RowKernels<BFloat16>& row_kernels<BFloat16>();
template const RowKernels<Float16>& row_kernels<Float16>();

}  // namespace selavi::cpu
