// What the primitives of the Sinkhorn solvers share. Definitions: selavi/ops/_definition.py.
//
// Rows are cut into blocks whose size depends on the shape alone and whose sums are added in order,
// so the result does not depend on the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../include/potential.h"
#include "../tensors.h"
#include "matrix_of.h"
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

}  // namespace selavi::cpu
