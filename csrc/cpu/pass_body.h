// Column masses and logsumexps of a block of rows, for row_kernels_body.h: a quad of rows at a
// time, in chunks where rows are long.

#include "pass_narrow_body.h"

namespace selavi::cpu::SELAVI_LEVEL {
namespace {

constexpr int64_t kChunk = 2048;    // columns of a long row that are computed on at once
constexpr int64_t kMaxChunks = 64;  // longer rows have longer chunks

// softmax_row of a quad of rows, `stride` apart in exponentials: there is always something to
// compute while a result is on its way. Apart from its caller, so that the loops have all registers
// to themselves.
__attribute__((noinline)) void softmax_quad(const float* const* log_p,
                                            const Potential<float>& potential, const Ahead& later,
                                            int64_t count, int64_t stride,
                                            float* __restrict exponentials, RowSoftmax* softmax) {
  const Ahead ahead = later;
  const float* const rows[kQuad] = {log_p[0], log_p[1], log_p[2], log_p[3]};
  const float* __restrict hi = potential.hi;
  const float* __restrict lo = potential.lo;
  const float scale = potential.scale, least = potential.least;
  float parts[kQuad][kLanes];
  for (auto& part : parts) {
    for (float& top : part) top = -__builtin_inff();
  }
  for (int64_t k = 0; k < count; k += kLanes) {
#pragma GCC unroll 4
    for (int64_t j = 0; j < kQuad; ++j) {
#pragma omp simd
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const float x = multiply_add<kFma>(scale, rows[j][k + lane], hi[k + lane]);
        parts[j][lane] = x > parts[j][lane] ? x : parts[j][lane];
      }
    }
  }
  double shift[kQuad];
  float float_shift[kQuad];
  bool far = !kFma;
  for (int64_t j = 0; j < kQuad; ++j) {
    shift[j] = round_to(lane_max(parts[j]), potential.quantum);
    float_shift[j] = static_cast<float>(shift[j]);
    far |= is_far(shift[j], potential.quantum);
  }
  if (far) {
    for (int64_t j = 0; j < kQuad; ++j) {
      softmax[j] = softmax_far_row<kFma>(log_p[j], potential, count, exponentials + j * stride);
    }
    return;
  }
  double sum[kQuad] = {};
  for (int64_t begin = 0; begin < count; begin += kFloatSum) {
    const int64_t end = begin + kFloatSum < count ? begin + kFloatSum : count;
    for (auto& part : parts) {
      for (float& term : part) term = 0.0f;
    }
    for (int64_t k = begin; k < end; k += kLanes) {
      ahead.prefetch(k);
#pragma GCC unroll 4
      for (int64_t j = 0; j < kQuad; ++j) {
#pragma omp simd
        for (int64_t lane = 0; lane < kLanes; ++lane) {
          const float x = rows[j][k + lane];
          const float y =
              multiply_add<kFma>(scale, x, hi[k + lane] - float_shift[j]) + lo[k + lane];
          const float exponential = exp2_below_100<kFma>(y, least);
          exponentials[j * stride + k + lane] = exponential;
          parts[j][lane] += exponential;
        }
      }
    }
    for (int64_t j = 0; j < kQuad; ++j) sum[j] += lane_sum(parts[j]);
  }
  for (int64_t j = 0; j < kQuad; ++j) softmax[j] = {shift[j] * potential.unit, sum[j]};
}

void softmax_quad(const double* const* log_p, const Potential<double>& potential, const Ahead&,
                  int64_t count, int64_t stride, double* exponentials, RowSoftmax* softmax) {
  for (int64_t j = 0; j < kQuad; ++j) {
    softmax[j] = softmax_row<kFma>(log_p[j], potential, count, exponentials + j * stride);
  }
}

// sums_k += weight * sum_j factor_j rows_jk over kQuad rows. Added in pairs: a plain float sum of
// many equal rows is always rounded the same way.
template <typename Number>
SELAVI_INLINE void add_quad(const Number* __restrict rows, int64_t stride, const Number* factor,
                            double weight, int64_t count, double* __restrict sums) {
  static_assert(kQuad == 4);
  const Number f0 = factor[0], f1 = factor[1], f2 = factor[2], f3 = factor[3];
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) {
    const Number* row = rows + k;
    const Number sum = multiply_add<kFma>(f0, row[0], f1 * row[stride]) +
                       multiply_add<kFma>(f2, row[2 * stride], f3 * row[3 * stride]);
    sums[k] = multiply_add<kFma>(weight, static_cast<double>(sum), sums[k]);
  }
}

// The rows of a quad that carry weight; of the others the first is repeated, without weight.
struct Quad {
  int64_t row[kQuad] = {};
  double weight[kQuad] = {};
  int64_t count = 0;

  Quad(const double* weights, int64_t first, int64_t last) {
    for (int64_t i = first; i < last && i < first + kQuad; ++i) {
      if (weights[i] == 0.0) continue;
      row[count] = i;
      weight[count++] = weights[i];
    }
    for (int64_t j = count; j < kQuad; ++j) row[j] = row[0];
  }
};

// One quad at one potential.
template <typename Number>
SELAVI_INLINE void pass_quad(const Number* const* log_p, const Quad& quad, const Ahead& ahead,
                             const Potential<Number>& potential, int64_t width,
                             Number* exponentials, RowSoftmax* softmax, double* mass) {
  RowSoftmax rows[kQuad];
  softmax_quad(log_p, potential, ahead, width, width, exponentials, rows);
  for (int64_t j = 0; j < quad.count; ++j) softmax[j] = rows[j];
  const double heaviest = heaviest_of(quad.weight, kQuad), scale = kFactorScale / heaviest;
  Number factor[kQuad];
  for (int64_t j = 0; j < kQuad; ++j) {
    factor[j] = static_cast<Number>(share_of(quad.weight[j] * scale, rows[j]));
  }
  add_quad(exponentials, width, factor, heaviest / kFactorScale, width, mass);
}

// A chunk of a row that is -inf throughout, which has no shift of its own: its exponentials are 0.
// NaN among its entries stays.
template <typename Number>
SELAVI_INLINE void clear_empty_chunk(const Number* log_p, int64_t count, Number* exponentials,
                                     RowSoftmax* part) {
  if (part->shift > -__builtin_inf()) return;
  for (int64_t k = 0; k < count; ++k) {
    if (log_p[k] != -__builtin_inf()) return;
  }
  for (int64_t k = 0; k < count; ++k) exponentials[k] = Number(0);
  part->sum = 0.0;
}

// The same where rows are too long to be kept near by: each is read once, in chunks with shifts of
// their own. `buffer` is for a chunk of kQuad rows.
template <typename Storage>
SELAVI_INLINE void pass_long_quad(const RowBlock<Storage>& block, const Quad& quad,
                                  const Potential<Compute<Storage>>& potential,
                                  Compute<Storage>* buffer, Compute<Storage>* exponentials,
                                  RowSoftmax* softmax, double* mass) {
  using Number = Compute<Storage>;
  const MatrixView<Storage>& matrix = block.matrix;
  const int64_t width = padded(matrix.columns);
  const int64_t shared = padded((width + kMaxChunks - 1) / kMaxChunks);
  const int64_t chunk = shared > kChunk ? shared : kChunk;
  RowSoftmax parts[kMaxChunks][kQuad];
  for (int64_t begin = 0; begin < width; begin += chunk) {
    const int64_t rest = matrix.columns - begin, columns = rest < chunk ? rest : chunk;
    const int64_t count = padded(columns);
    const MatrixView<Storage> part = {matrix.data + begin, matrix.rows, columns, matrix.row_stride,
                                      1};
    const Number* log_p[kQuad];
    for (int64_t j = 0; j < kQuad; ++j) {
      log_p[j] = buffer + j * count;
      load_rows(part, quad.row[j], quad.row[j] + 1, buffer + j * count, count);
    }
    pad_rows(buffer, kQuad, columns, count);
    const bool more = begin + chunk < width;
    const Ahead ahead = more ? ahead_of(matrix, quad.row[0], block.last, begin + chunk)
                             : ahead_of(matrix, quad.row[0] + kQuad, block.last, 0);
    const Potential<Number> there = {potential.scale,      potential.unit,       potential.quantum,
                                     potential.hi + begin, potential.lo + begin, potential.least};
    RowSoftmax* softmaxes = parts[begin / chunk];
    softmax_quad(log_p, there, ahead, count, width, exponentials + begin, softmaxes);
    for (int64_t j = 0; j < kQuad; ++j) {
      clear_empty_chunk(log_p[j], count, exponentials + j * width + begin, softmaxes + j);
    }
  }
  const int64_t chunks = (width + chunk - 1) / chunk;
  RowSoftmax rows[kQuad];
  for (int64_t j = 0; j < kQuad; ++j) {
    rows[j] = {-__builtin_inf(), 0.0};
    for (int64_t c = 0; c < chunks; ++c) {
      if (parts[c][j].shift > rows[j].shift) rows[j].shift = parts[c][j].shift;
    }
    for (int64_t c = 0; c < chunks; ++c) {
      rows[j].sum += parts[c][j].sum * exp_nonpositive(parts[c][j].shift - rows[j].shift);
    }
  }
  for (int64_t j = 0; j < quad.count; ++j) softmax[j] = rows[j];
  const double heaviest = heaviest_of(quad.weight, kQuad), scale = kFactorScale / heaviest;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t begin = c * chunk, rest = width - begin;
    Number factor[kQuad];
    for (int64_t j = 0; j < kQuad; ++j) {
      const double part = exp_nonpositive(parts[c][j].shift - rows[j].shift);
      const bool denormal = sizeof(Number) == sizeof(float) && part < 1.0 / kFactorScale;
      const double share = denormal ? 0.0 : part;
      factor[j] = static_cast<Number>(share_of(quad.weight[j] * scale * share, rows[j]));
    }
    add_quad(exponentials + begin, width, factor, heaviest / kFactorScale,
             rest < chunk ? rest : chunk, mass + begin);
  }
}

template <typename Storage>
void pass(const RowBlock<Storage>& block, const Potential<Compute<Storage>>* potentials,
          int64_t candidates, const double* weight, Compute<Storage>* scratch, RowSoftmax* softmax,
          double* mass, double* value) {
  using Number = Compute<Storage>;
  const int64_t columns = block.matrix.columns, width = padded(columns);
  if constexpr (sizeof(Number) == sizeof(float)) {
    if (columns <= kNarrow) {
      return pass_narrow(block, potentials, candidates, weight, scratch, softmax, mass, value);
    }
  }
  const bool is_long = block.matrix.column_stride == 1 && width > kChunk;
  RowReader<Storage> reader(block.matrix, block.first, block.last, scratch);
  Number* exponentials = scratch + kTile * width;
  for (int64_t group = block.first; group < block.last; group += kGroup) {
    double weights[kGroup];
    int64_t rows = 0;
    for (int64_t first = group; first < group + kGroup && first < block.last; first += kQuad) {
      const Quad quad(weight, first, block.last);
      if (quad.count == 0) continue;
      const Number* log_p[kQuad];
      for (int64_t j = 0; j < kQuad; ++j) {
        weights[rows + j] = quad.weight[j];
        if (!is_long) log_p[j] = j < quad.count ? reader.row_of_quad(quad.row[j]) : log_p[0];
      }
      for (int64_t s = 0; s < candidates; ++s) {
        RowSoftmax* out = softmax + s * kGroup + rows;
        if (is_long) {
          pass_long_quad(block, quad, potentials[s], scratch, exponentials, out, mass + s * width);
        } else {
          pass_quad(log_p, quad, reader.ahead(first), potentials[s], width, exponentials, out,
                    mass + s * width);
        }
      }
      rows += quad.count;
    }
    for (int64_t s = 0; s < candidates; ++s) {
      value[s] += weighted_logsumexp(weights, softmax + s * kGroup, rows);
    }
  }
}

}  // namespace
}  // namespace selavi::cpu::SELAVI_LEVEL
