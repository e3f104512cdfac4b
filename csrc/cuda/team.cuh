// Teams of threads that share a row.
#pragma once

#include "device.cuh"

namespace selavi::cuda {

constexpr int kTeamColumns = 8;  // columns of a row that one thread of a team holds

// The least power of two of threads, a warp or more, that holds `columns`; `most` where none does.
inline int team_size(int64_t columns, int most) {
  int size = kWarp;
  while (size < most && int64_t{size} * kTeamColumns < columns) size *= 2;
  return size;
}

// `size` threads of a block, a power of two and a warp or more.
//
// A block has 15 teams at most that are more than a warp. One reduction takes other scratch than
// the next: kCount numbers for each warp of the block.
struct Team {
  int size;
  int index;  // which of the block's teams
  int rank;   // of this thread in it

  __device__ explicit Team(int threads)
      : size(threads), index(threadIdx.x / threads), rank(threadIdx.x % threads) {}

  __device__ void meet() const {
    if (size > kWarp) named_sync(1 + index, size);
  }

  // Combines each of kCount numbers; all threads of the team have the results.
  template <int kCount, typename Number, typename Combine>
  __device__ void reduce(Number* values, Combine combine, Number* scratch) const {
#pragma unroll
    for (int lane = kWarp / 2; lane > 0; lane /= 2) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        values[j] = combine(values[j], __shfl_xor_sync(kAllLanes, values[j], lane));
      }
    }
    if (size == kWarp) return;
    if (threadIdx.x % kWarp == 0) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) scratch[threadIdx.x / kWarp * kCount + j] = values[j];
    }
    meet();
    const Number* mine = scratch + index * (size / kWarp) * kCount;
#pragma unroll
    for (int j = 0; j < kCount; ++j) values[j] = mine[j];
    for (int warp = 1; warp < size / kWarp; ++warp) {
#pragma unroll
      for (int j = 0; j < kCount; ++j) values[j] = combine(values[j], mine[warp * kCount + j]);
    }
  }

  template <int kCount, typename Number>
  __device__ void sum(Number* values, Number* scratch) const {
    reduce<kCount>(values, [](Number left, Number right) { return left + right; }, scratch);
  }

  // NaN is passed over.
  template <int kCount, typename Number>
  __device__ void max(Number* values, Number* scratch) const {
    reduce<kCount>(values, [](Number left, Number right) { return fmax(left, right); }, scratch);
  }
};

}  // namespace selavi::cuda
