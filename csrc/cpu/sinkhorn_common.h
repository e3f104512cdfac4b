// What the primitives of the Sinkhorn solvers share. Definitions: selavi/ops/_definition.py.
//
// Rows are cut into blocks whose size depends on the shape alone and whose sums are added in order,
// so the result does not depend on the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../include/potential.h"
#include "dispatch.h"
#include "row_kernels.h"

namespace selavi::cpu {

constexpr int64_t kBlocks = 64;            // blocks a problem at most: enough to share among cores
constexpr int64_t kPartialSums = 1 << 22;  // kept by all blocks: fewer blocks where rows are long
constexpr int64_t kMinRows = 64;           // below that a thread is not worth starting

struct Blocks {
  int64_t rows;
  int64_t count;

  // n rows; each block keeps `sums` numbers.
  Blocks(int64_t n, int64_t sums) {
    const int64_t wanted =
        std::clamp(kPartialSums / std::max(sums, int64_t{1}), kBlocks / 4, kBlocks);
    rows = std::max(kGroup, (n + wanted - 1) / wanted);
    count = (n + rows - 1) / rows;
  }
};

inline void check_lam(const Tensor& log_p, const Tensor& lam) {
  STD_TORCH_CHECK(lam.scalar_type() == ScalarType::Double && lam.is_contiguous() &&
                      lam.dim() == 1 && lam.size(0) == log_p.size(0),
                  "lam must be contiguous float64 (B,)");
}

inline void check_matrix(const Tensor& log_p, const Tensor& v, const Tensor& lam) {
  STD_TORCH_CHECK(log_p.dim() == 3, "log_p must be (B, N, K)");
  STD_TORCH_CHECK(v.scalar_type() == ScalarType::Double && v.is_contiguous(),
                  "v must be contiguous float64");
  STD_TORCH_CHECK(v.size(0) == log_p.size(0) && v.size(v.dim() - 1) == log_p.size(2),
                  "v must have the B and K of log_p");
  check_lam(log_p, lam);
}

inline void check_each_row(const Tensor& log_p, const Tensor& rows, const char* name) {
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Double && rows.is_contiguous() &&
                      rows.dim() == 2 && rows.size(0) == log_p.size(0) &&
                      rows.size(1) == log_p.size(1),
                  name, " must be contiguous float64 (B, N)");
}

inline const double* doubles(const Tensor& tensor) {
  return static_cast<const double*>(tensor.const_data_ptr());
}

inline double* mutable_doubles(const Tensor& tensor) {
  return static_cast<double*>(tensor.mutable_data_ptr());
}

}  // namespace selavi::cpu
