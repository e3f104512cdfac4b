// Shapes of launches and of matrices. Free of torch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

#include "device.cuh"

namespace selavi::cuda {

constexpr int kMaxCluster = 8;  // blocks, on every device that has clusters

struct Geometry {
  dim3 grid;
  int threads;        // a block
  size_t shared = 0;  // bytes a block
  int cluster = 1;    // blocks, along x
  bool cooperative = false;
};

// A (B, N, K) tensor of any strides, which are in elements.
template <typename Storage>
struct Matrices {
  const Storage* data;
  int64_t problems, rows, columns;
  int64_t problem_stride, row_stride, column_stride;
};

inline dim3 blocks_of(int64_t count) {
  if (count > INT32_MAX) throw std::length_error("more blocks than a launch can have");
  return dim3(static_cast<unsigned>(count));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace selavi::cuda
