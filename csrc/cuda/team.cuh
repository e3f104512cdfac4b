// Teams of threads that share a row.
#pragma once

#include "device.cuh"
#include "geometry.h"

namespace selavi::cuda {

constexpr int kTeamColumns = 8;  // columns of a row that one thread of a team holds

// The least power of two of threads, a warp or more, that holds `columns`; `most` where none does.
inline int team_size(int64_t columns, int most) {
  int size = kWarp;
  while (size < most && int64_t{size} * kTeamColumns < columns) size *= 2;
  return size;
}

// `size` threads of a block, a power of two and a warp or more.
struct Team {
  int size;
  int index;  // which of the block's teams
  int rank;   // of this thread in it

  __device__ explicit Team(int threads)
      : size(threads), index(threadIdx.x / threads), rank(threadIdx.x % threads) {}

  // The same for all threads of the team. Where it is more than a warp, all teams of the block call
  // together. scratch: a number for each warp of the block.
  template <typename Number, typename Combine>
  __device__ Number reduce(Number value, Combine combine, Number* scratch) const {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) {
      value = combine(value, __shfl_xor_sync(kAllLanes, value, lane));
    }
    if (size == kWarp) return value;
    if (threadIdx.x % kWarp == 0) scratch[threadIdx.x / kWarp] = value;
    __syncthreads();
    const Number* mine = scratch + index * (size / kWarp);
    value = mine[0];
    for (int warp = 1; warp < size / kWarp; ++warp) value = combine(value, mine[warp]);
    __syncthreads();
    return value;
  }

  template <typename Number>
  __device__ Number sum(Number value, Number* scratch) const {
    return reduce(value, [](Number left, Number right) { return left + right; }, scratch);
  }

  // NaN is passed over.
  template <typename Number>
  __device__ Number max(Number value, Number* scratch) const {
    return reduce(value, [](Number left, Number right) { return right > left ? right : left; },
                  scratch);
  }
};

}  // namespace selavi::cuda
