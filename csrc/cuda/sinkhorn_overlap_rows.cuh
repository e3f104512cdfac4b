// First half of sinkhorn_overlap: for each row what makes its exponentials sqrt(c_i) pi_ik.
#pragma once

#include "block_potential.cuh"
#include "geometry.h"

namespace selavi::cuda {

constexpr int kOverlapRowThreads = 256;  // a warp has a row

// Of float rows sqrt(c_i) pi_ik = 2^(x_ik log2(e) - shift - rest), where shift is a multiple of the
// quantum or beyond its limit; of double rows e^(x_ik - shift). Rows of weight 0 have a rest or a
// shift of +inf, rows without a softmax have one of NaN.
template <typename Number>
struct RowShift;
template <>
struct RowShift<float> {
  float shift, rest;
  __device__ bool is_skipped() const { return rest == infinity(); }
};
template <>
struct RowShift<double> {
  double shift;
  __device__ bool is_skipped() const { return shift == INFINITY; }
};

// v (B, K) as the kernels take it; in double lo is unused.
template <typename Number>
struct Potentials;
template <>
struct Potentials<float> {
  const float *hi, *lo;
  const BlockScale* scale;  // (B)
};
template <>
struct Potentials<double> {
  const double *v, *lam;
};

// hi, lo (B, K), scale (B) and live (B) = 0. A block has a problem.
__global__ void split_potentials_kernel(const double* v, const double* lam, int64_t columns,
                                        float* hi, float* lo, BlockScale* scale, int* live) {
  const int64_t b = blockIdx.x;
  const BlockScale own =
      split_potential(v + b * columns, lam[b], static_cast<int>(columns), hi + b * columns,
                      lo + b * columns, shared_memory<double>());
  if (threadIdx.x != 0) return;
  scale[b] = own;
  live[b] = 0;
}

// log2 of a weight, to float's accuracy but in double's range.
__device__ inline float log2_of_weight(double weight) {
  const long long bits = __double_as_longlong(weight);
  const long long mantissa = (bits & 0x000fffffffffffffLL) | 0x3ff0000000000000LL;
  return static_cast<float>((bits >> 52) - 1023) +
         log2_fast(static_cast<float>(__longlong_as_double(mantissa)));
}

template <typename Storage>
__device__ RowShift<float> row_shift(const Storage* row, int64_t stride, int64_t columns,
                                     const Potentials<float>& potentials, int64_t b,
                                     double weight) {
  const float* hi = potentials.hi + b * columns;
  const float* lo = potentials.lo + b * columns;
  const BlockScale block = potentials.scale[b];
  const Scale scale = block.scale;
  const int lane = threadIdx.x % kWarp;
  float top = -infinity(), sum = 0.0f;
  for (int64_t k = lane; k < columns; k += kWarp) {
    top = fmaxf(top, fmaf(scale.hi, to_float(row[k * stride]), hi[k]));
  }
  const float shift = block.shift(lanes_max(top));
  if (fabsf(shift) <= block.limit()) {
    for (int64_t k = lane; k < columns; k += kWarp) {
      const float x = to_float(row[k * stride]);
      sum += exp2_fast(fmaf(scale.hi, x, hi[k] - shift) + fmaf(scale.lo, x, lo[k]));
    }
    return {shift, log2_fast(lanes_sum(sum)) - 0.5f * log2_of_weight(weight)};
  }
  const auto exponent = [&](int64_t k) {
    return block.in_double() * to_float(row[k * stride]) + (static_cast<double>(hi[k]) + lo[k]);
  };
  double far_top = -INFINITY;
  for (int64_t k = lane; k < columns; k += kWarp) far_top = fmax(far_top, exponent(k));
  far_top = lanes_max(far_top);
  for (int64_t k = lane; k < columns; k += kWarp) {
    sum += exp2_fast(static_cast<float>(exponent(k) - far_top));  // NaN where all are -inf
  }
  const auto far_shift = static_cast<float>(far_top);
  const float rest = static_cast<float>(far_top - far_shift) + log2_fast(lanes_sum(sum));
  return {far_shift, rest - 0.5f * log2_of_weight(weight)};
}

__device__ inline RowShift<double> row_shift(const double* row, int64_t stride, int64_t columns,
                                             const Potentials<double>& potentials, int64_t b,
                                             double weight) {
  const double* v = potentials.v + b * columns;
  const double lam = potentials.lam[b];
  const int lane = threadIdx.x % kWarp;
  double top = -INFINITY, sum = 0.0;
  for (int64_t k = lane; k < columns; k += kWarp) top = fmax(top, fma(lam, row[k * stride], v[k]));
  top = lanes_max(top);
  for (int64_t k = lane; k < columns; k += kWarp) {
    sum += exp(fma(lam, row[k * stride], v[k]) - top);
  }
  return {top + log(lanes_sum(sum)) - 0.5 * log(weight)};
}

template <typename Number>
__device__ RowShift<Number> skipped_row();
template <>
__device__ inline RowShift<float> skipped_row<float>() {
  return {0.0f, infinity()};
}
template <>
__device__ inline RowShift<double> skipped_row<double>() {
  return {INFINITY};
}

// shifts (B, N); live (B), which held 0: whether a row of the problem has weight.
template <typename Storage>
__global__ void __launch_bounds__(kOverlapRowThreads)
    row_shifts_kernel(Matrices<Storage> log_p, Potentials<Compute<Storage>> potentials,
                      const double* weight, RowShift<Compute<Storage>>* shifts, int* live) {
  const int64_t row = (static_cast<int64_t>(blockIdx.x) * kOverlapRowThreads + threadIdx.x) / kWarp;
  if (row >= log_p.problems * log_p.rows) return;
  const int64_t b = row / log_p.rows, i = row % log_p.rows;
  RowShift<Compute<Storage>> shift = skipped_row<Compute<Storage>>();
  if (weight[row] != 0.0) {
    const Storage* source = log_p.data + b * log_p.problem_stride + i * log_p.row_stride;
    shift = row_shift(source, log_p.column_stride, log_p.columns, potentials, b, weight[row]);
  }
  if (threadIdx.x % kWarp != 0) return;
  shifts[row] = shift;
  if (!shift.is_skipped()) live[b] = 1;
}

}  // namespace selavi::cuda
