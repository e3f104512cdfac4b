// Rows of a strided matrix of any storage type as contiguous rows of the type we compute in.
// Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "half_precision.h"

namespace selavi {

// The type a storage type is computed in.
template <typename Storage>
using Compute = std::conditional_t<std::is_same_v<Storage, double>, double, float>;

template <typename Storage>
struct MatrixView {
  const Storage* data;
  int64_t rows;
  int64_t columns;
  int64_t row_stride;
  int64_t column_stride;
};

// Hands out one row at a time. Where the rows already lie as needed it points into the matrix;
// otherwise it copies kTile rows at once, so that a transposed matrix is read along its memory.
template <typename Storage>
class RowReader {
 public:
  explicit RowReader(const MatrixView<Storage>& matrix) : matrix_(matrix) {
    if (!in_place()) buffer_.resize(static_cast<size_t>(kTile * matrix.columns));
  }

  const Compute<Storage>* row(int64_t i, int64_t last) {
    if constexpr (std::is_same_v<Storage, Compute<Storage>>) {
      if (in_place()) return matrix_.data + i * matrix_.row_stride;
    }
    if (i < tile_first_ || i >= tile_last_) load_tile(i, std::min(i + kTile, last));
    return buffer_.data() + (i - tile_first_) * matrix_.columns;
  }

 private:
  static constexpr int64_t kTile = 16;

  bool in_place() const {
    return std::is_same_v<Storage, Compute<Storage>> && matrix_.column_stride == 1;
  }

  void load_tile(int64_t first, int64_t last) {
    tile_first_ = first;
    tile_last_ = last;
    if (matrix_.column_stride == 1) {
      for (int64_t i = first; i < last; ++i) {
        const Storage* source = matrix_.data + i * matrix_.row_stride;
        Compute<Storage>* target = buffer_.data() + (i - first) * matrix_.columns;
        for (int64_t k = 0; k < matrix_.columns; ++k) {
          target[k] = static_cast<Compute<Storage>>(source[k]);
        }
      }
      return;
    }
    for (int64_t k = 0; k < matrix_.columns; ++k) {
      const Storage* source = matrix_.data + k * matrix_.column_stride;
      for (int64_t i = first; i < last; ++i) {
        buffer_[static_cast<size_t>((i - first) * matrix_.columns + k)] =
            static_cast<Compute<Storage>>(source[i * matrix_.row_stride]);
      }
    }
  }

  MatrixView<Storage> matrix_;
  std::vector<Compute<Storage>> buffer_;
  int64_t tile_first_ = 0;
  int64_t tile_last_ = 0;
};

}  // namespace selavi
