// Column sums of exponentials, for row_kernels_body.h. Rows are taken in groups and columns in
// tiles, so that a tile stays in the second-level cache between its two readings.

namespace selavi::cpu::SELAVI_LEVEL {
namespace {

constexpr bool kFma = SELAVI_FMA;

// For each column, about the largest x_ik of a tile's rows: a multiple of the quantum, or 0 where
// the column is -inf throughout.
template <typename Number>
SELAVI_INLINE void column_shifts(const Number* tile, const Potential<Number>& rows, int64_t first,
                                 int64_t last, int64_t width, Number* __restrict shift) {
  const Number scale = rows.scale;
  for (int64_t k = 0; k < width; ++k) shift[k] = static_cast<Number>(-__builtin_inf());
  for (int64_t i = first; i < last; ++i) {
    const Number hi = rows.hi[i];
    if (hi == static_cast<Number>(-__builtin_inf())) continue;
    const Number* __restrict row = tile + (i - first) * width;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) {
      const Number x = multiply_add<kFma>(scale, row[k], hi);
      shift[k] = x > shift[k] ? x : shift[k];
    }
  }
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) {
    const auto rounded = static_cast<Number>(round_to(shift[k], rows.quantum));
    shift[k] = shift[k] > static_cast<Number>(-__builtin_inf()) ? rounded : Number(0);
  }
}

// sums_k = sum_i exp(x_ik - shift_k) over a tile's rows.
SELAVI_INLINE void add_exponentials(const float* tile, const Potential<float>& rows, int64_t first,
                                    int64_t last, int64_t width, const float* __restrict shift,
                                    float* __restrict sums) {
  for (int64_t i = first; i < last; ++i) {
    const float hi = rows.hi[i], lo = rows.lo[i], least = rows.least, scale = rows.scale;
    if (hi == -__builtin_inff()) continue;
    const float* __restrict row = tile + (i - first) * width;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) {
      const float y = multiply_add<kFma>(scale, row[k], hi - shift[k]) + lo;
      sums[k] += exp2_below_100<kFma>(y, least);
    }
  }
}

SELAVI_INLINE void add_exponentials(const double* tile, const Potential<double>& rows,
                                    int64_t first, int64_t last, int64_t width,
                                    const double* __restrict shift, double* __restrict sums) {
  for (int64_t i = first; i < last; ++i) {
    const double u = rows.hi[i], scale = rows.scale;
    if (u == -__builtin_inf()) continue;
    const double* __restrict row = tile + (i - first) * width;
#pragma omp simd
    for (int64_t k = 0; k < width; ++k) {
      sums[k] += exp_nonpositive(multiply_add<kFma>(scale, row[k], u) - shift[k]);
    }
  }
}

// The same in double, shifts too, for tiles that are too far from 0 (or lack the instruction).
SELAVI_INLINE void add_far_exponentials(const float* tile, const Potential<float>& rows,
                                        int64_t first, int64_t last, int64_t width,
                                        double* __restrict shift, float* __restrict sums) {
  const double scale = rows.scale;
  for (int64_t k = 0; k < width; ++k) shift[k] = -__builtin_inf();
  for (int sweep = 0; sweep < 2; ++sweep) {  // shifts, then exponentials
    for (int64_t i = first; i < last; ++i) {
      if (rows.hi[i] == -__builtin_inff()) continue;
      const double u = static_cast<double>(rows.hi[i]) + rows.lo[i];
      const float* __restrict row = tile + (i - first) * width;
      const float least = rows.least;
      if (sweep == 1) {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const auto y = static_cast<float>(scale * row[k] + u - shift[k]);
          sums[k] += exp2_below_100<kFma>(y, least);
        }
      } else {
#pragma omp simd
        for (int64_t k = 0; k < width; ++k) {
          const double x = scale * row[k] + u;
          shift[k] = x > shift[k] ? x : shift[k];
        }
      }
    }
    for (int64_t k = 0; k < width; ++k) shift[k] = shift[k] > -__builtin_inf() ? shift[k] : 0.0;
  }
}

// Merges exp(shift) sums into the running exp(max) sum of each column.
template <typename Number>
SELAVI_INLINE void merge_columns(const double* __restrict shift, const Number* __restrict sums,
                                 double unit, int64_t width, double* __restrict max,
                                 double* __restrict sum) {
  constexpr double kNone = -__builtin_inf();
#pragma omp simd
  for (int64_t k = 0; k < width; ++k) {
    const double other = sums[k] == Number(0) ? kNone : shift[k] * unit;
    const double both = other > max[k] ? other : max[k];
    const double finite = both == kNone ? 0.0 : both;
    sum[k] = sum[k] * exp_nonpositive(max[k] - finite) +
             static_cast<double>(sums[k]) * exp_nonpositive(other - finite);
    max[k] = both;
  }
}

// Columns [0, tile.columns) of the rows of a block; `max` and `sum` are scratch of one tile.
template <typename Storage>
SELAVI_INLINE void column_tile(const RowBlock<Storage>& block,
                               const Potential<Compute<Storage>>& rows, Compute<Storage>* scratch,
                               double* max, double* sum) {
  using Number = Compute<Storage>;
  const int64_t width = padded(block.matrix.columns);
  Number* tile = scratch;
  Number* shift = tile + kGroup * width;
  Number* sums = shift + width;
  double wide_shift[kColumnTile];
  pad_rows(tile, kGroup, block.matrix.columns, width);
  for (int64_t k = 0; k < width; ++k) max[k] = -__builtin_inf();
  for (int64_t k = 0; k < width; ++k) sum[k] = 0.0;
  for (int64_t first = block.first; first < block.last; first += kGroup) {
    const int64_t last = first + kGroup < block.last ? first + kGroup : block.last;
    load_rows(block.matrix, first, last, tile, width);
    column_shifts(tile, rows, first, last, width, shift);
    for (int64_t k = 0; k < width; ++k) sums[k] = Number(0);
    bool far = false;
    if constexpr (sizeof(Number) == sizeof(float)) {
      far = !kFma;
      for (int64_t k = 0; k < width; ++k) far |= is_far(shift[k], rows.quantum);
      if (far) add_far_exponentials(tile, rows, first, last, width, wide_shift, sums);
    }
    if (!far) {
      add_exponentials(tile, rows, first, last, width, shift, sums);
      for (int64_t k = 0; k < width; ++k) wide_shift[k] = shift[k];
    }
    merge_columns(wide_shift, sums, rows.unit, width, max, sum);
  }
}

template <typename Storage>
void column_logsumexp(const RowBlock<Storage>& block, const Potential<Compute<Storage>>& rows,
                      Compute<Storage>* scratch, double* running, double* out) {
  const MatrixView<Storage>& matrix = block.matrix;
  for (int64_t begin = 0; begin < matrix.columns; begin += kColumnTile) {
    const int64_t rest = matrix.columns - begin, columns = rest < kColumnTile ? rest : kColumnTile;
    double* max = running;
    double* sum = running + kColumnTile;
    const MatrixView<Storage> part = {matrix.data + begin * matrix.column_stride, matrix.rows,
                                      columns, matrix.row_stride, matrix.column_stride};
    column_tile<Storage>({part, block.first, block.last}, rows, scratch, max, sum);
#pragma omp simd
    for (int64_t k = 0; k < columns; ++k) out[begin + k] = max[k] + log_positive(sum[k]);
  }
}

}  // namespace
}  // namespace selavi::cpu::SELAVI_LEVEL
