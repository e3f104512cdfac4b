// Loops over blocks of rows, compiled once for each instruction set and picked at run time. The
// rest of the CPU backend is compiled for the least of them.
#pragma once

#include <cstdint>

#include "../include/row_reader.h"
#include "../include/softmax_row.h"

namespace selavi::cpu {

constexpr int64_t kGroup = 64;         // rows summed in float before they go to a double
constexpr int64_t kNarrow = 64;        // columns up to which the pass takes a group of rows at once
constexpr int64_t kColumnTile = 2048;  // columns of column_logsumexp's tile of kGroup rows

// Numbers of scratch for the pass.
constexpr int64_t pass_scratch(int64_t columns) {
  return (columns <= kNarrow ? 2 * kGroup + kTile : kTile + kQuad) * padded(columns);
}

// Rows [first, last) of a matrix.
template <typename Storage>
struct RowBlock {
  MatrixView<Storage> matrix;
  int64_t first;
  int64_t last;
};

// kBFloat16Pairs: 32 bits hold two rows of a column, the first one's are the lower.
enum class Output { kFloat, kDouble, kBFloat16, kFloat16, kBFloat16Pairs };

// `scratch` is aligned to 64 bytes and uninitialized. Weights and the like are indexed by row.
template <typename Storage>
struct RowKernels {
  using Number = Compute<Storage>;

  // mass (S, padded(K)) += sum_i weight_i pi_ik and value (S) += sum_i weight_i
  // logsumexp_i at S potentials. Scratch: pass_scratch(K) and S * kGroup.
  void (*pass)(const RowBlock<Storage>&, const Potential<Number>*, int64_t candidates,
               const double* weight, Number* scratch, RowSoftmax* softmax, double* mass,
               double* value);

  // out (rows, K), `stride` elements apart and from row `first` on, = factor_i pi_ik, or 0 where
  // that is below `least`. Scratch: (kTile + 1) * padded(K).
  void (*scaled_softmax)(const RowBlock<Storage>&, const Potential<Number>&, const double* factor,
                         double least, Number* scratch, void* out, int64_t stride, Output);

  // Scratch: (kTile + 1) * padded(K).
  void (*labels)(const RowBlock<Storage>&, const Potential<Number>&, double lam, const double* v,
                 Number* scratch, int64_t* label, double* logsumexp, double* confidence);

  // out_k = logsumexp_i(lam log_p_ik + u_i) over the block's rows; `rows` holds lam and u. Scratch:
  // (kGroup + 2) * padded(min(K, kColumnTile)) and 2 * kColumnTile.
  void (*column_logsumexp)(const RowBlock<Storage>&, const Potential<Number>& rows, Number* scratch,
                           double* running, double* out);

  // accumulator (rows, K), from row `first` on, += weight_i log_softmax_ik; a null weight is
  // `every`. Scratch: (kTile + 1) * padded(K).
  void (*add_log_softmax)(const RowBlock<Storage>&, const Potential<Number>&, const double* weight,
                          double every, Number* scratch, double* accumulator);
};

template <typename Storage>
const RowKernels<Storage>& row_kernels();

// How sum_i x_i x_i^T is computed, for columns that are padded to a multiple of `width`.
template <typename Number>
struct Gram {
  int64_t height, width;  // of a tile; the height divides the width
  Output element;         // of the rows, as wide as Number

  // tile (height, width), which begins at (j, k), += its sum over `count` rows of elements.
  void (*add)(const void* rows, int64_t count, int64_t stride, int64_t j, int64_t k, Number* tile);
};

template <typename Number>
const Gram<Number>& gram();

}  // namespace selavi::cpu
