// Tensors as every backend takes them: from a dtype to a template argument, and what is checked.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include "include/half_precision.h"

namespace selavi {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename T>
struct TypeTag {
  using type = T;
};

// Calls body(TypeTag<Storage>{}) for the four floating dtypes.
template <typename Body>
auto dispatch_dtype(ScalarType dtype, const char* name, Body&& body) {
  switch (dtype) {
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

template <typename Body>
auto dispatch_floating(const Tensor& tensor, const char* name, Body&& body) {
  return dispatch_dtype(tensor.scalar_type(), name, body);
}

inline void check_lam(const Tensor& log_p, const Tensor& lam) {
  STD_TORCH_CHECK(lam.scalar_type() == ScalarType::Double && lam.is_contiguous() &&
                      lam.dim() == 1 && lam.size(0) == log_p.size(0),
                  "lam must be contiguous float64 (B,)");
}

inline void check_matrix(const Tensor& log_p, const Tensor& v, const Tensor& lam) {
  STD_TORCH_CHECK(log_p.dim() == 3, "log_p must be (B, N, K)");
  STD_TORCH_CHECK(v.scalar_type() == ScalarType::Double && v.is_contiguous(),
                  "v must be contiguous float64");
  STD_TORCH_CHECK(v.size(0) == log_p.size(0) && v.size(v.dim() - 1) == log_p.size(2),
                  "v must have the B and K of log_p");
  check_lam(log_p, lam);
}

inline void check_each_row(const Tensor& log_p, const Tensor& rows, const char* name) {
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Double && rows.is_contiguous() &&
                      rows.dim() == 2 && rows.size(0) == log_p.size(0) &&
                      rows.size(1) == log_p.size(1),
                  name, " must be contiguous float64 (B, N)");
}

inline const double* doubles(const Tensor& tensor) {
  return static_cast<const double*>(tensor.const_data_ptr());
}

inline double* mutable_doubles(const Tensor& tensor) {
  return static_cast<double*>(tensor.mutable_data_ptr());
}

}  // namespace selavi
