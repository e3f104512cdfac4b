// x_k = lam log_p_k + v_k in base 2, as csrc/include/softmax_row.h has it:
//   x_k log2(e) - shift = (scale_hi log_p_k + (hi_k - shift)) + (scale_lo log_p_k + lo_k)
// with hi_k and the shift multiples of `quantum`, so that the difference is exact up to 2^23
// quanta. The quantum is a warp's own, of the columns it holds. Free of torch.
#pragma once

#include "device.cuh"

namespace selavi::cuda {

// scale_hi is below lam log2(e), so that scale_lo is above 0 and -inf stays -inf in both products.
struct Scale {
  float hi, lo;

  __device__ explicit Scale(double lam) {
    const double exact = lam * kLog2E;
    hi = static_cast<float>(exact);
    if (hi >= exact) hi = __int_as_float(__float_as_int(hi) - 1);
    lo = static_cast<float>(exact - hi);
  }
};

constexpr float kLargestQuantum = 4.0f;  // above it exponentials may leave the range of float
constexpr int kMostQuanta = 1 << 23;

// From the largest |v| (over a warp; not NaN, not infinite): a power of two, as small as the rows
// with some log_p above -64 allow.
__device__ __forceinline__ float quantum_of(double largest_v, double lam) {
  const double largest = fmax(fmax(largest_v, 64.0 * lam) * kLog2E, 1.0);
  const long long bits = __double_as_longlong(largest);
  const int exponent = static_cast<int>(bits >> 52) - 1023 + ((bits & 0xfffffffffffffLL) != 0);
  return __int_as_float((min(exponent, 127) - 23 + 127) << 23);
}

// v log2(e) as hi + lo.
__device__ __forceinline__ float2 split_potential(double v, float quantum) {
  const double exact = v * kLog2E, round = 6755399441055744.0 * quantum;  // 1.5 * 2^52 quanta
  const double hi = (exact + round) - round;
  const bool finite = fabs(hi) < 1e300;
  return make_float2(static_cast<float>(hi), finite ? static_cast<float>(exact - hi) : 0.0f);
}

}  // namespace selavi::cuda
