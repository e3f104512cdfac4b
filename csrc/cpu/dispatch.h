// From a tensor's dtype to a template argument.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "../include/row_reader.h"

namespace selavi::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<Storage>{}) for the four floating dtypes.
template <typename Body>
auto dispatch_floating(const Tensor& tensor, const char* name, Body&& body) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return body(TypeTag<float>{});
    case ScalarType::Double:
      return body(TypeTag<double>{});
    case ScalarType::BFloat16:
      return body(TypeTag<BFloat16>{});
    case ScalarType::Half:
      return body(TypeTag<Float16>{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

// Problem b of a (B, N, K) tensor.
template <typename Storage>
MatrixView<Storage> matrix_of(const Tensor& tensor, int64_t b) {
  return {static_cast<const Storage*>(tensor.const_data_ptr()) + b * tensor.stride(0),
          tensor.size(1), tensor.size(2), tensor.stride(1), tensor.stride(2)};
}

}  // namespace selavi::cpu
