// Rows of a strided matrix of any storage type as padded rows of the type we compute in.
// Torch-free.
#pragma once

#include <cstdint>
#include <type_traits>

#include "half_precision.h"

namespace selavi {

// The type a storage type is computed in.
template <typename Storage>
using Compute = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

constexpr int64_t kLanes = 16;  // rows are padded to a multiple of this
constexpr int64_t kTile = 16;   // rows read at once where columns are apart in memory
constexpr int64_t kQuad = 4;    // rows summed at once

constexpr int64_t padded(int64_t columns) { return (columns + kLanes - 1) / kLanes * kLanes; }

template <typename Storage>
struct MatrixView {
  const Storage* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
};

// Copies row i of `matrix` to rows + i * stride for i in [first, last), along its memory.
template <typename Storage>
SELAVI_INLINE void load_rows(const MatrixView<Storage>& matrix, int64_t first, int64_t last,
                             Compute<Storage>* __restrict rows, int64_t stride) {
  if (matrix.column_stride == 1) {
    for (int64_t i = first; i < last; ++i) {
      const Storage* __restrict source = matrix.data + i * matrix.row_stride;
      Compute<Storage>* __restrict target = rows + (i - first) * stride;
#pragma omp simd
      for (int64_t k = 0; k < matrix.columns; ++k) target[k] = widen(source[k]);
    }
    return;
  }
  for (int64_t k = 0; k < matrix.columns; ++k) {
    const Storage* source = matrix.data + k * matrix.column_stride;
    for (int64_t i = first; i < last; ++i) {
      rows[(i - first) * stride + k] = widen(source[i * matrix.row_stride]);
    }
  }
}

// Fills the padding of rows with what makes an exponential 0.
template <typename Number>
SELAVI_INLINE void pad_rows(Number* rows, int64_t count, int64_t columns, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t k = columns; k < stride; ++k) {
      rows[i * stride + k] = static_cast<Number>(-__builtin_inf());
    }
  }
}

// Rows of a quad that will be wanted later, asked for piecemeal while others are computed on: all
// at once they would hold up what is needed now.
struct Ahead {
  const char* data;
  int64_t row_bytes;
  int64_t element_bytes;

  SELAVI_INLINE void prefetch(int64_t k) const {
#pragma GCC unroll 4
    for (int64_t j = 0; j < kQuad; ++j) {
      __builtin_prefetch(data + j * row_bytes + k * element_bytes, 0, 2);
    }
  }
};

// The quad of rows from row i and column k on, or nothing of use where there is none.
template <typename Storage>
SELAVI_INLINE Ahead ahead_of(const MatrixView<Storage>& matrix, int64_t i, int64_t last,
                             int64_t k) {
  const int64_t size = sizeof(Storage);
  const auto* data = reinterpret_cast<const char*>(matrix.data);
  if (i + kQuad > last || matrix.column_stride != 1) return {data, 0, 0};
  return {data + (i * matrix.row_stride + k) * size, matrix.row_stride * size, size};
}

// Hands out padded copies of the rows [first, last) in ascending order, a row at a time, or kTile
// rows where columns are apart in memory. A row's copy lasts while rows of the same quad are read:
// the quads are first .. first + kQuad - 1 and so on.
template <typename Storage>
class RowReader {
 public:
  using Number = Compute<Storage>;

  // buffer: kTile * padded(columns).
  SELAVI_INLINE RowReader(const MatrixView<Storage>& matrix, int64_t first, int64_t last,
                          Number* buffer)
      : matrix_(matrix),
        first_(first),
        last_(last),
        buffer_(buffer),
        stride_(padded(matrix.columns)) {
    pad_rows(buffer, kTile, matrix.columns, stride_);
  }

  SELAVI_INLINE const Number* row(int64_t i) {
    prefetch(i + kAhead);
    return row_of_quad(i);
  }

  // The same for callers that make use of `ahead`.
  SELAVI_INLINE const Number* row_of_quad(int64_t i) {
    if (matrix_.column_stride == 1) {
      Number* target = buffer_ + (i - first_) % kQuad * stride_;
      load_rows(matrix_, i, i + 1, target, stride_);
      return target;
    }
    const int64_t tile = (i - first_) / kTile;
    if (tile != tile_) {
      const int64_t begin = first_ + tile * kTile, end = begin + kTile;
      load_rows(matrix_, begin, end < last_ ? end : last_, buffer_, stride_);
      tile_ = tile;
    }
    return buffer_ + (i - first_) % kTile * stride_;
  }

  SELAVI_INLINE Ahead ahead(int64_t i) const { return ahead_of(matrix_, i + kAhead, last_, 0); }

 private:
  static constexpr int64_t kAhead = 16;
  static constexpr int64_t kLine = 64;

  // Short rows are computed on while the next ones arrive; long ones are streams that the
  // processor sees by itself.
  SELAVI_INLINE void prefetch(int64_t i) const {
    const int64_t bytes = matrix_.columns * static_cast<int64_t>(sizeof(Storage));
    if (i >= last_ || bytes > 64 * kLine || matrix_.column_stride != 1) return;
    const auto* data = reinterpret_cast<const char*>(matrix_.data + i * matrix_.row_stride);
    for (int64_t offset = 0; offset < bytes; offset += kLine)
      __builtin_prefetch(data + offset, 0, 2);
  }

  MatrixView<Storage> matrix_;
  int64_t first_;
  int64_t last_;
  Number* buffer_;
  int64_t stride_;
  int64_t tile_ = -1;
};

}  // namespace selavi
