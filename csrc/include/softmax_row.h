// The arithmetic of one row, shared by the operators. Torch-free, header-only.
//
// Rows are padded to a multiple of kLanes, and `count` is one; the padding's exponentials are 0.
#pragma once

#include <cstdint>

#include "exponential.h"
#include "row_reader.h"

namespace selavi {

constexpr double kLog2 = 0.693147180559945309417;

// What x_k = lam * log_p_k + v_k needs beside log_p: x_k = unit * (scale * log_p_k + hi_k + lo_k).
// In double, scale = lam, hi = v, and the unit is 1.
//
// In float the unit is that of base 2, log 2, but for what makes lam / unit = scale a float: so the
// product's factor is exact, and 2^y in place of exp(unit y) is wrong by 4e-8 |y| at most, for y <=
// 0 by 3e-8 of a row's sum. hi_k is a multiple of `quantum`, a power of two. Less a shift that is
// such a multiple too,
//   x_k / unit - shift = (scale log_p_k + (hi_k - shift)) + lo_k
// has an exact difference inside and is rounded at its own size, not at the size of x_k: at
// |x_k| = 1e7 a plain float would be off by 1/2. The difference is exact as long as neither hi_k,
// which sees to the quantum, nor the shift is above 2^23 quanta.
template <typename Number>
struct Potential {
  Number scale;
  double unit;
  double quantum;
  const Number* hi;
  const Number* lo;
  float least = kLeastExponent;
};

struct RowSoftmax {
  double shift;  // about max_k x_k
  double sum;    // sum_k exp(x_k - shift)
};

// weight / sum; NaN for a row that is -inf throughout, of which no share can be said.
SELAVI_INLINE double share_of(double weight, const RowSoftmax& row) {
  return row.shift > -__builtin_inf() ? weight / row.sum : __builtin_nan("");
}

// `value` to the nearest multiple of the quantum.
SELAVI_INLINE double round_to(double value, double quantum) {
  constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  return (value + quantum * kRound) - quantum * kRound;
}

// Whether a shift makes the differences of Potential inexact, or is not finite, or may be so far
// from the row's largest exponent (by two quanta) that the exponentials leave float's range.
SELAVI_INLINE bool is_far(double shift, double quantum) {
  return !(__builtin_fabs(shift) <= 0x1p23 * quantum) || quantum > 4.0;
}

constexpr int64_t kFloatSum = 1024;  // terms summed in float before they go to a double

// Of kLanes numbers, which it overwrites.
template <typename Number>
SELAVI_INLINE Number lane_sum(Number* parts) {
#pragma GCC unroll 4
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int64_t lane = 0; lane < half; ++lane) parts[lane] += parts[lane + half];
  }
  return parts[0];
}

template <typename Number>
SELAVI_INLINE Number lane_max(Number* tops) {
#pragma GCC unroll 4
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
#pragma omp simd
    for (int64_t lane = 0; lane < half; ++lane) {
      tops[lane] = tops[lane + half] > tops[lane] ? tops[lane + half] : tops[lane];
    }
  }
  return tops[0];
}

// exponentials_k = 2^y(k) and their sum.
template <bool kFma, typename Exponent>
SELAVI_INLINE double exponentiate(const Exponent& y, float least, int64_t count,
                                  float* __restrict exponentials) {
  double sum = 0.0;
  for (int64_t begin = 0; begin < count; begin += kFloatSum) {
    const int64_t end = begin + kFloatSum < count ? begin + kFloatSum : count;
    float parts[kLanes] = {};
    for (int64_t k = begin; k < end; k += kLanes) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float exponential = exp2_below_100<kFma>(y(k + lane), least);
        exponentials[k + lane] = exponential;
        parts[lane] += exponential;
      }
    }
    sum += lane_sum(parts);
  }
  return sum;
}

// max_k x_k in the units of hi, as exactly as Number holds it. NaN is passed over.
template <bool kFma, typename Number>
SELAVI_INLINE Number row_top(const Number* __restrict log_p, const Potential<Number>& potential,
                             int64_t count) {
  const Number* __restrict hi = potential.hi;
  const Number scale = potential.scale;
  Number tops[kLanes];
  for (Number& top : tops) top = static_cast<Number>(-__builtin_inf());
  for (int64_t k = 0; k < count; k += kLanes) {
#pragma omp simd
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const Number x = multiply_add<kFma>(scale, log_p[k + lane], hi[k + lane]);
      tops[lane] = x > tops[lane] ? x : tops[lane];
    }
  }
  return lane_max(tops);
}

// softmax_row in double, for float rows that are too far from 0 (or lack the instruction).
template <bool kFma>
SELAVI_INLINE RowSoftmax softmax_far_row(const float* __restrict log_p,
                                         const Potential<float>& potential, int64_t count,
                                         float* __restrict exponentials) {
  const float* __restrict hi = potential.hi;
  const float* __restrict lo = potential.lo;
  const double scale = potential.scale;
  double top = -__builtin_inf();
#pragma omp simd reduction(max : top)
  for (int64_t k = 0; k < count; ++k) {
    const double x = scale * log_p[k] + (static_cast<double>(hi[k]) + lo[k]);
    top = x > top ? x : top;
  }
  const double sum = exponentiate<kFma>(
      [=](int64_t k) __attribute__((always_inline)) {
        return static_cast<float>(scale * log_p[k] + (static_cast<double>(hi[k]) + lo[k]) - top);
      },
      potential.least, count, exponentials);
  return {top * potential.unit, sum};
}

// exponentials_k = exp(x_k - shift), given row_top. NaN and +inf in log_p make the sum NaN; log_p
// that is -inf throughout makes the shift -inf or the sum NaN.
template <bool kFma>
SELAVI_INLINE RowSoftmax softmax_row(const float* __restrict log_p,
                                     const Potential<float>& potential, float top, int64_t count,
                                     float* __restrict exponentials) {
  const double shift = round_to(top, potential.quantum);
  if (!kFma || is_far(shift, potential.quantum)) {
    return softmax_far_row<kFma>(log_p, potential, count, exponentials);
  }
  const float* __restrict hi = potential.hi;
  const float* __restrict lo = potential.lo;
  const float scale = potential.scale;
  const auto float_shift = static_cast<float>(shift);
  const double sum = exponentiate<kFma>(
      [=](int64_t k) __attribute__((always_inline)) {
        return multiply_add<kFma>(scale, log_p[k], hi[k] - float_shift) + lo[k];
      },
      potential.least, count, exponentials);
  return {shift * potential.unit, sum};
}

template <bool kFma>
SELAVI_INLINE RowSoftmax softmax_row(const double* __restrict log_p,
                                     const Potential<double>& potential, double top, int64_t count,
                                     double* __restrict exponentials) {
  const double* __restrict v = potential.hi;
  const double lam = potential.scale;
  double sum = 0.0;
#pragma omp simd reduction(+ : sum)
  for (int64_t k = 0; k < count; ++k) {
    exponentials[k] = exp_nonpositive(multiply_add<kFma>(lam, log_p[k], v[k]) - top);
    sum += exponentials[k];
  }
  return {top, sum};
}

template <bool kFma, typename Number>
SELAVI_INLINE RowSoftmax softmax_row(const Number* log_p, const Potential<Number>& potential,
                                     int64_t count, Number* exponentials) {
  const Number top = row_top<kFma>(log_p, potential, count);
  return softmax_row<kFma>(log_p, potential, top, count, exponentials);
}

}  // namespace selavi
