// A tensor as the CPU kernels see it.
#pragma once

#include "../include/row_reader.h"
#include "../tensors.h"

namespace selavi::cpu {

// Problem b of a (B, N, K) tensor.
template <typename Storage>
MatrixView<Storage> matrix_of(const Tensor& tensor, int64_t b) {
  return {static_cast<const Storage*>(tensor.const_data_ptr()) + b * tensor.stride(0),
          tensor.size(1), tensor.size(2), tensor.stride(1), tensor.stride(2)};
}

}  // namespace selavi::cpu
