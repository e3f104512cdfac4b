#include "row_kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <type_traits>

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

bool has_fast_bfloat16() {
#ifdef SELAVI_X86_LEVELS
  return level() == 2 && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

template <typename Storage>
const RowKernels<Storage>& row_kernels() {
#ifdef SELAVI_X86_LEVELS
  if (level() == 2) return avx512::row_kernels<Storage>();
  if (level() == 1) return avx2::row_kernels<Storage>();
#endif
  return plain::row_kernels<Storage>();
}

template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();
template const RowKernels<BFloat16>& row_kernels<BFloat16>();
template const RowKernels<Float16>& row_kernels<Float16>();

template <>
PotentialParts<double>::PotentialParts(const double* v, double lam, int64_t count)
    : scale_hi_(lam), scale_lo_(0.0), quantum_(0.0), hi_(padded(count)), lo_(0) {
  std::fill(std::copy_n(v, count, hi_.data()), hi_.data() + padded(count), 0.0);
}

// The quantum is as small as softmax_row lets it be for rows whose largest log_p is above -kUsual;
// it falls back to double for others.
template <>
PotentialParts<float>::PotentialParts(const double* v, double lam, int64_t count)
    : hi_(padded(count)), lo_(padded(count)) {
  const double to_base_2 = 1.0 / kLog2;
  scale_hi_ = static_cast<float>(lam * to_base_2);
  scale_lo_ = static_cast<float>(lam * to_base_2 - scale_hi_);
  constexpr double kUsual = 64.0;
  double largest = lam * kUsual * to_base_2;
  for (int64_t k = 0; k < count; ++k) {
    if (std::isfinite(v[k])) largest = std::max(largest, std::abs(v[k]) * to_base_2);
  }
  quantum_ = std::exp2(std::ceil(std::log2(std::max(largest, 1.0))) - 23.0);
  for (int64_t k = 0; k < padded(count); ++k) {
    const double value = k < count ? v[k] * to_base_2 : 0.0;
    const double hi = round_to(value, quantum_);
    hi_.data()[k] = static_cast<float>(hi);
    lo_.data()[k] = std::isfinite(hi) ? static_cast<float>(value - hi) : 0.0f;
  }
}

}  // namespace selavi::cpu
