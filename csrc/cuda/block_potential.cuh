// A problem's whole potential split by a block (potential.cuh says why), with one quantum for all.
#pragma once

#include "potential.cuh"
#include "team.cuh"

namespace selavi::cuda {

struct BlockScale {
  Scale scale;
  float quantum;

  // The largest shift that leaves differences to hi parts exact; none does above kLargestQuantum.
  __device__ float limit() const {
    return quantum > kLargestQuantum ? -1.0f : kMostQuanta * quantum;
  }
  // The multiple of the quantum next to a row's top; NaN or beyond the limit where none serves.
  __device__ float shift(float top) const { return rintf(top * (1.0f / quantum)) * quantum; }
  __device__ double in_double() const { return static_cast<double>(scale.hi) + scale.lo; }
};

// v (K) log2(e) = hi + lo (K), by all threads of a block, a power of two; they must be brought
// together before others use hi and lo. scratch: a number a warp.
__device__ inline BlockScale split_potential(const double* v, double lam, int columns, float* hi,
                                             float* lo, double* scratch) {
  const Team block(static_cast<int>(blockDim.x));
  double largest = 0.0;
  for (int k = block.rank; k < columns; k += block.size) {
    const double size = fabs(v[k]);
    if (size < INFINITY) largest = fmax(largest, size);
  }
  block.max<1>(&largest, scratch);
  const BlockScale scale = {Scale(lam), quantum_of(largest, lam)};
  for (int k = block.rank; k < columns; k += block.size) {
    const float2 parts = split_potential(v[k], scale.quantum);
    hi[k] = parts.x;
    lo[k] = parts.y;
  }
  return scale;
}

}  // namespace selavi::cuda
