// The arithmetic of one row, shared by the operators. Torch-free, header-only.
//
// Sums and maxima run over a fixed number of lanes combined in a fixed order, so a result does not
// depend on the width of the vectors that the compiler chooses.
#pragma once

#include <cstdint>
#include <limits>

#include "exponential.h"

namespace selavi {

constexpr int64_t kLanes = 16;

struct RowSoftmax {
  double max;  // max_k x_k
  double sum;  // sum_k exp(x_k - max)
};

inline __attribute__((always_inline)) double lane_max(const double* x, int64_t count) {
  double lanes[kLanes];
  for (int64_t j = 0; j < kLanes; ++j) lanes[j] = -std::numeric_limits<double>::infinity();
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] = x[k + j] > lanes[j] ? x[k + j] : lanes[j];
  }
  for (int64_t j = 0; k + j < count; ++j) lanes[j] = x[k + j] > lanes[j] ? x[k + j] : lanes[j];
  double best = lanes[0];
  for (int64_t j = 1; j < kLanes; ++j) best = lanes[j] > best ? lanes[j] : best;
  return best;
}

template <typename T>
inline __attribute__((always_inline)) double lane_sum(const T* x, int64_t count) {
  double lanes[kLanes] = {};
  int64_t k = 0;
  for (; k + kLanes <= count; k += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lanes[j] += static_cast<double>(x[k + j]);
  }
  for (int64_t j = 0; k + j < count; ++j) lanes[j] += static_cast<double>(x[k + j]);
  double total = 0.0;
  for (int64_t j = 0; j < kLanes; ++j) total += lanes[j];
  return total;
}

// x_k = lam * log_p_k + v_k, exponentials[k] = exp(x_k - max). x is scratch of `count` doubles.
// x is formed in double: at lam * log_p = -1200 a float argument would cost 6e-5 of the result.
template <typename T>
inline __attribute__((always_inline)) RowSoftmax softmax_row_template(const T* __restrict log_p,
                                                                      const double* __restrict v,
                                                                      double lam, int64_t count,
                                                                      double* __restrict x,
                                                                      T* __restrict exponentials) {
  for (int64_t k = 0; k < count; ++k) x[k] = lam * static_cast<double>(log_p[k]) + v[k];
  const double max = lane_max(x, count);
  for (int64_t k = 0; k < count; ++k) {
    exponentials[k] = exp_nonpositive(static_cast<T>(x[k] - max));
  }
  return {max, lane_sum(exponentials, count)};
}

// accumulator_k += factor * exponentials_k
template <typename T>
inline __attribute__((always_inline)) void add_scaled_row_template(const T* __restrict exponentials,
                                                                   double factor, int64_t count,
                                                                   double* __restrict accumulator) {
  for (int64_t k = 0; k < count; ++k) {
    accumulator[k] += factor * static_cast<double>(exponentials[k]);
  }
}

// accumulator_k += weight * (logits_k - max - log_sum)
template <typename T>
inline __attribute__((always_inline)) void add_log_softmax_row_template(
    const T* __restrict logits, double logsumexp, double weight, int64_t count,
    double* __restrict accumulator) {
  for (int64_t k = 0; k < count; ++k) {
    accumulator[k] += weight * (static_cast<double>(logits[k]) - logsumexp);
  }
}

}  // namespace selavi
