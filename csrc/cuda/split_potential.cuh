// lam log_p + v in base 2 as sums of floats: csrc/include/softmax_row.h says why.
#pragma once

#include "team.cuh"

namespace selavi::cuda {

// lam log2(e) = hi + lo; a potential's hi parts are multiples of the quantum.
struct Scale {
  float hi, lo;
  double quantum;

  // The largest shift that leaves differences to hi parts exact. No shift does where the quantum is
  // so large that the exponentials would leave float's range.
  __device__ float limit() const {
    return quantum > 4.0 ? -1.0f : static_cast<float>(0x1p23 * quantum);
  }
  __device__ double in_double() const { return static_cast<double>(hi) + lo; }
};

constexpr float kFloor = -0x1p100f;  // floats are kept finite, so that no product makes NaN of -inf
__device__ __forceinline__ float keep_finite(float value) {
  return kFloor > value ? kFloor : value;
}

__device__ __forceinline__ double nearest_multiple(double value, double quantum) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  return (value + quantum * kRound) - quantum * kRound;
}

// v (K) log2(e) = hi + lo (K), by all threads of a block, a power of two. scratch: a number a warp.
__device__ inline Scale split_potential(const double* v, double lam, int64_t columns, float* hi,
                                        float* lo, double* scratch) {
  constexpr double kUsual = 64.0;  // rows whose largest log_p is below -kUsual need double
  const Team block(static_cast<int>(blockDim.x));
  double largest = fmax(lam * kUsual * kLog2E, 1.0);
  for (int64_t k = block.rank; k < columns; k += block.size) {
    const double value = fabs(v[k] * kLog2E);
    if (value < INFINITY) largest = fmax(largest, value);
  }
  int exponent;
  const double fraction = frexp(block.max(largest, scratch), &exponent);
  Scale scale;
  scale.hi = static_cast<float>(lam * kLog2E);
  scale.lo = static_cast<float>(lam * kLog2E - scale.hi);
  scale.quantum = ldexp(1.0, exponent - (fraction == 0.5 ? 24 : 23));
  for (int64_t k = block.rank; k < columns; k += block.size) {
    const double value = v[k] * kLog2E, rounded = nearest_multiple(value, scale.quantum);
    hi[k] = static_cast<float>(rounded);
    lo[k] = fabs(rounded) < INFINITY ? static_cast<float>(value - rounded) : 0.0f;
  }
  return scale;
}

}  // namespace selavi::cuda
