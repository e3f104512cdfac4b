// One row's maximum and logsumexp in double, by a team of warps: for what is done once a solve, and
// for float64. Free of torch.
#pragma once

#include "device.cuh"

namespace selavi::cuda {

constexpr int64_t kNarrowRow = 2048;  // columns up to which one warp takes a row

// e^x, as exactly as what is stored is worth: float's range and error where it is not float64.
template <typename Storage>
__device__ __forceinline__ double exponential(double x) {
  if constexpr (std::is_same_v<Storage, double>) return exp(x);
  return exp2_fast(static_cast<float>(x * kLog2E));
}

// Elements of a row that a thread has in flight: exp in double takes many registers.
template <typename Storage>
constexpr int unroll_of() {
  return std::is_same_v<Storage, double> ? 1 : 4;
}

struct RowTop {
  double top;  // max_k x_k; NaN is passed over
  int64_t k;   // the lowest that has it
  double sum;  // sum_k exp(x_k - top)

  // NaN where x is -inf throughout.
  __device__ double logsumexp() const { return top + log(sum); }
  __device__ double largest_share() const { return 1.0 / sum; }
};

// Shared memory of row_top, at its beginning.
template <int kWarps>
constexpr size_t row_shared_bytes() {
  return kWarps == 1 ? 0 : kWarps * sizeof(RowTop);
}

// Of x_k = lam p_k + v_k, for all threads of the team: a warp, or a block of kWarps warps.
template <int kWarps, typename Storage>
__device__ RowTop row_top(const Storage* row, int64_t stride, int64_t columns, const double* v,
                          double lam) {
  constexpr int kTeam = kWarps * kWarp;
  constexpr int kUnroll = unroll_of<Storage>();
  const int member = static_cast<int>(threadIdx.x) % kTeam, lane = member % kWarp;
  RowTop best = {-infinity(), columns, 0.0};
#pragma unroll kUnroll
  for (int64_t k = member; k < columns; k += kTeam) {
    const double x = scaled(lam, to_double(load(row + k * stride)), v[k]);
    if (x > best.top) {
      best.top = x;
      best.k = k;
    }
  }
  const auto take_better = [&](double top, int64_t k) {
    if (top > best.top || (top == best.top && k < best.k)) {
      best.top = top;
      best.k = k;
    }
  };
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    const double top = __shfl_xor_sync(kAllLanes, best.top, distance);
    take_better(top, __shfl_xor_sync(kAllLanes, best.k, distance));
  }
  auto* const shared = shared_memory<RowTop>();
  if constexpr (kWarps > 1) {
    __syncthreads();  // an earlier row's have been read
    if (lane == 0) shared[member / kWarp] = best;
    __syncthreads();
    for (int w = 0; w < kWarps; ++w) take_better(shared[w].top, shared[w].k);
  }
#pragma unroll kUnroll
  for (int64_t k = member; k < columns; k += kTeam) {
    const double x = scaled(lam, to_double(load(row + k * stride)), v[k]);
    best.sum += exponential<Storage>(x - best.top);
  }
  best.sum = lanes_sum(best.sum);
  if constexpr (kWarps > 1) {
    __syncthreads();
    if (lane == 0) shared[member / kWarp].sum = best.sum;
    __syncthreads();
    best.sum = 0.0;
    for (int w = 0; w < kWarps; ++w) best.sum += shared[w].sum;
  }
  return best;
}

}  // namespace selavi::cuda
