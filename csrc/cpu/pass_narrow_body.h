// The pass over rows of few columns, for row_kernels_body.h. They would leave vectors along them
// half empty, and each would cost two sums over a vector: here a vector holds one column of kTile
// rows.

namespace selavi::cpu::SELAVI_LEVEL {
namespace {

constexpr double kFactorScale = 0x1p100;  // keeps products off float's slow denormals
constexpr int64_t kTiles = kGroup / kTile;

double weighted_logsumexp(const double* weight, const RowSoftmax* rows, int64_t count) {
  double total = 0.0;
#pragma omp simd reduction(+ : total)
  for (int64_t j = 0; j < count; ++j) {
    total += weight[j] * (rows[j].shift + log_positive<kFma>(rows[j].sum));
  }
  return total;
}

// Factors are relative to the heaviest weight, so that equal weights are exact. It is kept where
// its inverse is finite.
SELAVI_INLINE double heaviest_of(const double* weight, int64_t count) {
  double heaviest = 0x1p-600;
#pragma omp simd reduction(max : heaviest)
  for (int64_t j = 0; j < count; ++j) heaviest = weight[j] > heaviest ? weight[j] : heaviest;
  return heaviest;
}

// Deals the four quarters of `from` alternately.
SELAVI_INLINE void riffle(const float* __restrict from, int64_t quarter, float* __restrict to) {
#pragma omp simd
  for (int64_t i = 0; i < quarter; ++i) {
    to[4 * i] = from[i];
    to[4 * i + 1] = from[quarter + i];
    to[4 * i + 2] = from[2 * quarter + i];
    to[4 * i + 3] = from[3 * quarter + i];
  }
}

// (kTile, columns) to (columns, kTile): each riffle makes two bits of the row's number the last.
SELAVI_INLINE void transpose_tile(const float* rows, int64_t columns, float* spare, float* tile) {
  static_assert(kTile == 16);
  riffle(rows, kTile / 4 * columns, spare);
  riffle(spare, kTile / 4 * columns, tile);
}

// exponentials = 2^y(t, k, lane), of (kTiles, columns, kTile) like all of a group, and their sums.
template <typename Exponent>
SELAVI_INLINE void exponentiate_group(const Exponent& y, float least, const Ahead& ahead,
                                      int64_t columns, float* __restrict exponentials,
                                      float (*sums)[kTile]) {
  for (int64_t t = 0; t < kTiles; ++t) {
    for (int64_t lane = 0; lane < kTile; ++lane) sums[t][lane] = 0.0f;
  }
  for (int64_t k = 0; k < columns; ++k) {
    ahead.prefetch(k);
#pragma GCC unroll 4
    for (int64_t t = 0; t < kTiles; ++t) {
#pragma omp simd
      for (int64_t lane = 0; lane < kTile; ++lane) {
        const float exponential = exp2_below_100<kFma>(y(t, k, lane), least);
        exponentials[(t * columns + k) * kTile + lane] = exponential;
        sums[t][lane] += exponential;
      }
    }
  }
}

// softmax_row of a group of rows: log_p and exponentials are (kTiles, columns, kTile).
__attribute__((noinline)) void softmax_group(const float* __restrict log_p,
                                             const Potential<float>& potential, const Ahead& later,
                                             int64_t columns, float* __restrict exponentials,
                                             RowSoftmax* softmax) {
  const float* __restrict hi = potential.hi;
  const float* __restrict lo = potential.lo;
  const float scale = potential.scale;
  const Ahead ahead = later;
  float tops[kTiles][kTile], sums[kTiles][kTile];
  for (auto& tile : tops) {
    for (float& top : tile) top = -__builtin_inff();
  }
  for (int64_t k = 0; k < columns; ++k) {
#pragma GCC unroll 4
    for (int64_t t = 0; t < kTiles; ++t) {
#pragma omp simd
      for (int64_t lane = 0; lane < kTile; ++lane) {
        const float x = multiply_add<kFma>(scale, log_p[(t * columns + k) * kTile + lane], hi[k]);
        tops[t][lane] = x > tops[t][lane] ? x : tops[t][lane];
      }
    }
  }
  double shift[kTiles][kTile];
  int32_t far = kFma ? 0 : 1;
  for (int64_t t = 0; t < kTiles; ++t) {
#pragma omp simd reduction(| : far)
    for (int64_t lane = 0; lane < kTile; ++lane) {
      shift[t][lane] = round_to(tops[t][lane], potential.quantum);
      tops[t][lane] = static_cast<float>(shift[t][lane]);
      far |= is_far(shift[t][lane], potential.quantum) ? 1 : 0;
    }
  }
  if (far == 0) {
    exponentiate_group(
        [&](int64_t t, int64_t k, int64_t lane) __attribute__((always_inline)) {
          const float x = log_p[(t * columns + k) * kTile + lane];
          return multiply_add<kFma>(scale, x, hi[k] - tops[t][lane]) + lo[k];
        },
        potential.least, ahead, columns, exponentials, sums);
  } else {
    const double wide = scale;
    for (auto& tile : shift) {
      for (double& top : tile) top = -__builtin_inf();
    }
    for (int64_t t = 0; t < kTiles; ++t) {
      for (int64_t k = 0; k < columns; ++k) {
        const double v = static_cast<double>(hi[k]) + lo[k];
#pragma omp simd
        for (int64_t lane = 0; lane < kTile; ++lane) {
          const double x = wide * log_p[(t * columns + k) * kTile + lane] + v;
          shift[t][lane] = x > shift[t][lane] ? x : shift[t][lane];
        }
      }
    }
    exponentiate_group(
        [&](int64_t t, int64_t k, int64_t lane) __attribute__((always_inline)) {
          const double x = log_p[(t * columns + k) * kTile + lane];
          const double v = static_cast<double>(hi[k]) + lo[k];
          return static_cast<float>(wide * x + v - shift[t][lane]);
        },
        potential.least, ahead, columns, exponentials, sums);
  }
  const double* shifts = &shift[0][0];
  const float* all_sums = &sums[0][0];
#pragma omp simd
  for (int64_t j = 0; j < kGroup; ++j) {
    softmax[j].shift = shifts[j] * potential.unit;
    softmax[j].sum = static_cast<double>(all_sums[j]);
  }
}

// sums_k += weight * sum_i factor_i exponentials_ik over a group, in pairs too.
SELAVI_INLINE void add_group(const float* __restrict exponentials, const float* __restrict factor,
                             double weight, int64_t columns, double* __restrict sums) {
  static_assert(kTiles == 4);
  const int64_t stride = columns * kTile;
  for (int64_t k = 0; k < columns; ++k) {
    const float* __restrict column = exponentials + k * kTile;
    double parts[kTile];
#pragma omp simd
    for (int64_t lane = 0; lane < kTile; ++lane) {
      const float *e = column + lane, *f = factor + lane;
      const float low = multiply_add<kFma>(f[0], e[0], f[kTile] * e[stride]);
      const float high =
          multiply_add<kFma>(f[2 * kTile], e[2 * stride], f[3 * kTile] * e[3 * stride]);
      parts[lane] = low + high;
    }
    sums[k] += weight * lane_sum(parts);
  }
}

// Copies the rows from `first` on that carry weight, at most a group, and their weights; the rest
// of the group is 0. Returns the first row that was not looked at.
template <typename Storage>
SELAVI_INLINE int64_t load_group(const RowBlock<Storage>& block, const double* weight,
                                 int64_t first, float* rows, double* weights, int64_t* count) {
  const MatrixView<Storage>& matrix = block.matrix;
  const int64_t columns = matrix.columns;
  const bool dense = matrix.column_stride == 1 && matrix.row_stride == columns;
  int64_t loaded = 0;
  while (first < block.last && loaded < kGroup) {
    if (weight[first] == 0.0) {
      ++first;
      continue;
    }
    int64_t last = first;
    float* target = rows + loaded * columns;
    while (last < block.last && loaded < kGroup && weight[last] != 0.0) {
      weights[loaded++] = weight[last++];
    }
    if (dense) {
      const int64_t numbers = (last - first) * columns;
      load_rows(MatrixView<Storage>{matrix.data + first * columns, 1, numbers, numbers, 1}, 0, 1,
                target, numbers);
    } else {
      load_rows(matrix, first, last, target, columns);
    }
    first = last;
  }
  *count = loaded;
  for (; loaded < kGroup; ++loaded) {
    weights[loaded] = 0.0;
    for (int64_t k = 0; k < columns; ++k) rows[loaded * columns + k] = 0.0f;
  }
  return first;
}

// The group from row i on, a part for each column.
template <typename Storage>
SELAVI_INLINE Ahead ahead_of_groups(const RowBlock<Storage>& block, int64_t i) {
  const MatrixView<Storage>& matrix = block.matrix;
  const bool some = i + kGroup <= block.last && matrix.row_stride == matrix.columns;
  const Ahead ahead = ahead_of(matrix, i, some ? block.last : 0, 0);
  return {ahead.data, ahead.element_bytes * kGroup / kQuad, ahead.element_bytes * kGroup};
}

// For rows of few columns, which would leave vectors along them half empty: the vectors are along
// columns.
template <typename Storage>
void pass_narrow(const RowBlock<Storage>& block, const Potential<float>* potentials,
                 int64_t candidates, const double* weight, float* scratch, RowSoftmax* softmax,
                 double* mass, double* value) {
  const int64_t columns = block.matrix.columns, tile = kTile * columns;
  float* log_p = scratch;
  float* exponentials = scratch + kTiles * tile;  // the rows themselves, before
  float* spare = exponentials + kTiles * tile;
  for (int64_t i = block.first; i < block.last;) {
    double weights[kGroup];
    int64_t count;
    i = load_group(block, weight, i, exponentials, weights, &count);
    if (count == 0) break;
    for (int64_t t = 0; t < kTiles; ++t) {
      transpose_tile(exponentials + t * tile, columns, spare, log_p + t * tile);
    }
    const Ahead ahead = ahead_of_groups(block, i + kGroup);
    const double heaviest = heaviest_of(weights, kGroup), scale = kFactorScale / heaviest;
    for (int64_t s = 0; s < candidates; ++s) {
      softmax_group(log_p, potentials[s], ahead, columns, exponentials, softmax);
      float factor[kGroup];
#pragma omp simd
      for (int64_t j = 0; j < kGroup; ++j) {
        factor[j] = static_cast<float>(share_of(weights[j] * scale, softmax[j]));
      }
      add_group(exponentials, factor, heaviest / kFactorScale, columns, mass + s * padded(columns));
      value[s] += weighted_logsumexp(weights, softmax, count);
    }
  }
}

}  // namespace
}  // namespace selavi::cpu::SELAVI_LEVEL
