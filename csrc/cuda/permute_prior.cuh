// Kernels of permute_prior: ranks by counting. K^2 comparisons a problem, but no scratch that grows
// with a sort, nothing of the host, ties by index; a sort of the few thousand columns that a prior
// has would not be faster. Definition: selavi/ops/_definition.py.
#pragma once

#include "device.cuh"

namespace selavi::cuda {

constexpr int kRankThreads = 256;

// Integers in the order of the numbers: 0.0 and -0.0 are the same, NaN is above all else.
__device__ inline long long order_of(double value) {
  if (value != value) return 0x7fffffffffffffffLL;
  const long long bits = __double_as_longlong(value + 0.0);  // -0.0 + 0.0 is 0.0
  return bits >= 0 ? bits : bits ^ 0x7fffffffffffffffLL;
}

// Where values[k] stands among values (K) in descending order: behind the larger ones and the equal
// ones of lower index. All threads of a block call this with the same values. tile: kRankThreads.
__device__ inline int64_t rank_of(int64_t k, const double* values, int64_t columns,
                                  long long* tile) {
  const long long key = order_of(values[min(k, columns - 1)]);
  int64_t rank = 0;
  for (int64_t first = 0; first < columns; first += kRankThreads) {
    const int64_t mine = first + threadIdx.x, rest = columns - first;
    __syncthreads();
    if (mine < columns) tile[threadIdx.x] = order_of(values[mine]);
    __syncthreads();
    const int count = rest < kRankThreads ? static_cast<int>(rest) : kRankThreads;
    const int64_t lower = k - first;  // so many of this tile have a lower index
    const int ties = lower < 0 ? 0 : lower < count ? static_cast<int>(lower) : count;
    int before = 0;
    for (int j = 0; j < ties; ++j) before += tile[j] >= key;
    for (int j = ties; j < count; ++j) before += tile[j] > key;
    rank += before;
  }
  return rank;
}

// sorted (B, K): prior in descending order. rank (B, K): of mass. A block has kRankThreads columns.
__global__ void __launch_bounds__(kRankThreads)
    sort_prior_kernel(const double* prior, const double* mass, int64_t columns, int64_t blocks,
                      double* sorted, int64_t* rank) {
  long long* tile = shared_memory<long long>();
  const int64_t k = blockIdx.x % blocks * kRankThreads + threadIdx.x;
  const int64_t problem = blockIdx.x / blocks * columns;
  const int64_t prior_rank = rank_of(k, prior + problem, columns, tile);
  const int64_t mass_rank = rank_of(k, mass + problem, columns, tile);
  if (k >= columns) return;
  sorted[problem + prior_rank] = prior[problem + k];
  rank[problem + k] = mass_rank;
}

// out (B, K): out_k = sorted[rank_k].
__global__ void __launch_bounds__(kRankThreads)
    place_prior_kernel(const double* sorted, const int64_t* rank, int64_t columns, int64_t blocks,
                       double* out) {
  const int64_t k = blockIdx.x % blocks * kRankThreads + threadIdx.x;
  const int64_t problem = blockIdx.x / blocks * columns;
  if (k < columns) out[problem + k] = sorted[problem + rank[problem + k]];
}

}  // namespace selavi::cuda
