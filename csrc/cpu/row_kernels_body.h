// The bodies of RowKernels for the instruction set that the including file has switched on.
//
// Nothing of the standard library is called here: the linker keeps one copy of its inline
// functions, and that could be one compiled for a processor that is not there.

#include "column_kernels_body.h"
#include "gram_body.h"
#include "pass_body.h"

namespace selavi::cpu::SELAVI_LEVEL {
namespace {

template <typename Number, typename Out>
SELAVI_INLINE void store_scaled(const Number* __restrict row, Number factor, Number least,
                                int64_t count, Out* __restrict out) {
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) {
    const Number scaled = row[k] * factor;
    narrow(scaled < least ? Number(0) : scaled, &out[k]);
  }
}

// The second row of a pair comes after the first.
SELAVI_INLINE void store_paired(const float* __restrict row, float factor, float least,
                                int64_t count, bool second, uint32_t* __restrict out) {
#pragma omp simd
  for (int64_t k = 0; k < count; ++k) {
    const float scaled = row[k] * factor;
    BFloat16 stored;
    narrow(scaled < least ? 0.0f : scaled, &stored);
    const uint32_t bits = stored.bits;
    out[k] = second ? out[k] | bits << 16 : bits;
  }
}

template <typename Number>
SELAVI_INLINE void store_row(const Number* row, Number factor, Number least, int64_t count,
                             int64_t at, int64_t stride, void* out, Output output) {
  const int64_t offset = at * stride;
  switch (output) {
    case Output::kFloat:
      return store_scaled(row, factor, least, count, static_cast<float*>(out) + offset);
    case Output::kDouble:
      return store_scaled(row, factor, least, count, static_cast<double*>(out) + offset);
    case Output::kBFloat16:
      return store_scaled(row, factor, least, count, static_cast<BFloat16*>(out) + offset);
    case Output::kFloat16:
      return store_scaled(row, factor, least, count, static_cast<Float16*>(out) + offset);
    case Output::kBFloat16Pairs:
      if constexpr (sizeof(Number) == sizeof(float)) {
        store_paired(row, factor, least, count, at % 2 == 1,
                     static_cast<uint32_t*>(out) + at / 2 * stride);
      }
  }
}

template <typename Storage>
void scaled_softmax(const RowBlock<Storage>& block, const Potential<Compute<Storage>>& potential,
                    const double* factor, double least, Compute<Storage>* scratch, void* out,
                    int64_t stride, Output output) {
  using Number = Compute<Storage>;
  const int64_t columns = block.matrix.columns, width = padded(columns);
  RowReader<Storage> reader(block.matrix, block.first, block.last, scratch);
  Number* exponentials = scratch + kTile * width;
  for (int64_t i = block.first; i < block.last; ++i) {
    Number scale = Number(0);
    if (factor[i] == 0.0) {
      for (int64_t k = 0; k < columns; ++k) exponentials[k] = Number(0);
    } else {
      const RowSoftmax row = softmax_row<kFma>(reader.row(i), potential, width, exponentials);
      scale = static_cast<Number>(share_of(factor[i], row));
    }
    store_row(exponentials, scale, static_cast<Number>(least), columns, i - block.first, stride,
              out, output);
  }
}

template <typename Number>
SELAVI_INLINE Number largest(const Number* numbers, int64_t count) {
  Number top = Number(0);
#pragma omp simd reduction(max : top)
  for (int64_t k = 0; k < count; ++k) top = numbers[k] > top ? numbers[k] : top;
  return top;
}

// argmax_k lam * log_p_k + v_k in double. Only the columns whose exponential is nearly the largest
// can be it, and mostly there is one.
template <typename Number>
SELAVI_INLINE int64_t argmax(const Number* __restrict exponentials, Number top,
                             const Number* __restrict log_p, double lam, const double* v,
                             int64_t columns) {
  const Number least = top * Number(1.0 - 1e-4);
  int32_t candidates = 0, candidate = 0;
  const auto width = static_cast<int32_t>(padded(columns));  // the padding is 0, so below `least`
#pragma omp simd reduction(+ : candidates) reduction(max : candidate)
  for (int32_t k = 0; k < width; ++k) {
    const int32_t near = exponentials[k] >= least ? 1 : 0;
    candidates += near;
    candidate = near * k > candidate ? near * k : candidate;
  }
  if (candidates == 1) return candidate;
  int64_t best = 0;
  double best_x = -__builtin_inf();
  for (int64_t k = 0; k < columns; ++k) {
    if (!(exponentials[k] >= least)) continue;
    const double x = lam * static_cast<double>(log_p[k]) + v[k];
    if (x > best_x) {
      best = k;
      best_x = x;
    }
  }
  return best;
}

template <typename Storage>
void labels(const RowBlock<Storage>& block, const Potential<Compute<Storage>>& potential,
            double lam, const double* v, Compute<Storage>* scratch, int64_t* label,
            double* logsumexp, double* confidence) {
  using Number = Compute<Storage>;
  const int64_t columns = block.matrix.columns, width = padded(columns);
  RowReader<Storage> reader(block.matrix, block.first, block.last, scratch);
  Number* exponentials = scratch + kTile * width;
  for (int64_t first = block.first; first < block.last; first += kGroup) {
    const int64_t last = first + kGroup < block.last ? first + kGroup : block.last;
    RowSoftmax softmax[kGroup];
    for (int64_t i = first; i < last; ++i) {
      const Number* log_p = reader.row(i);
      softmax[i - first] = softmax_row<kFma>(log_p, potential, width, exponentials);
      const Number top = largest(exponentials, width);
      label[i] = argmax(exponentials, top, log_p, lam, v, columns);
      confidence[i] = top / softmax[i - first].sum;
    }
#pragma omp simd
    for (int64_t j = 0; j < last - first; ++j) {
      logsumexp[first + j] = softmax[j].shift + log_positive(softmax[j].sum);
    }
  }
}

template <typename Storage>
void add_log_softmax(const RowBlock<Storage>& block, const Potential<Compute<Storage>>& potential,
                     const double* weight, double every, Compute<Storage>* scratch,
                     double* accumulator) {
  using Number = Compute<Storage>;
  const int64_t columns = block.matrix.columns, width = padded(columns);
  RowReader<Storage> reader(block.matrix, block.first, block.last, scratch);
  Number* exponentials = scratch + kTile * width;
  for (int64_t i = block.first; i < block.last; ++i) {
    const double factor = weight != nullptr ? weight[i] : every;
    if (factor == 0.0) continue;
    const Number* __restrict logits = reader.row(i);
    const RowSoftmax row = softmax_row<kFma>(logits, potential, width, exponentials);
    const double logsumexp = row.shift + log_positive(row.sum);
    double* __restrict target = accumulator + (i - block.first) * columns;
#pragma omp simd
    for (int64_t k = 0; k < columns; ++k) {
      const auto x = static_cast<double>(logits[k]);
      target[k] += factor * (x - logsumexp);
    }
  }
}

}  // namespace

template <typename Storage>
const RowKernels<Storage>& row_kernels() {
  static constexpr RowKernels<Storage> kernels = {pass<Storage>, scaled_softmax<Storage>,
                                                  labels<Storage>, column_logsumexp<Storage>,
                                                  add_log_softmax<Storage>};
  return kernels;
}

template <typename Number>
const Gram<Number>& gram() {
  static constexpr Gram<Number> kernel = {
      kGramHeight, kGramWidth<Number>,
      sizeof(Number) == sizeof(float) ? Output::kFloat : Output::kDouble,
      gram_tile<Number, Number>};
  return kernel;
}

template const Gram<float>& gram<float>();
template const Gram<double>& gram<double>();
template const RowKernels<float>& row_kernels<float>();
template const RowKernels<double>& row_kernels<double>();
template const RowKernels<BFloat16>& row_kernels<BFloat16>();
template const RowKernels<Float16>& row_kernels<Float16>();

}  // namespace selavi::cpu::SELAVI_LEVEL
