// Tensors as every backend takes them: from a dtype to a template argument, and what is checked.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <vector>

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

// v has `dims` dimensions: (B, K), or (B, S, K) for S candidates.
inline void check_matrix(const Tensor& log_p, const Tensor& v, int64_t dims, const Tensor& lam) {
  STD_TORCH_CHECK(log_p.dim() == 3, "log_p must be (B, N, K)");
  STD_TORCH_CHECK(v.dim() == dims, "v must be ", dims == 2 ? "(B, K)" : "(B, S, K)");
  STD_TORCH_CHECK(v.scalar_type() == ScalarType::Double && v.is_contiguous(),
                  "v must be contiguous float64");
  STD_TORCH_CHECK(v.size(0) == log_p.size(0) && v.size(dims - 1) == log_p.size(2),
                  "v must have the B and K of log_p");
  check_lam(log_p, lam);
}

inline void check_each_row(const Tensor& log_p, const Tensor& rows, const char* name) {
  STD_TORCH_CHECK(rows.scalar_type() == ScalarType::Double && rows.is_contiguous() &&
                      rows.dim() == 2 && rows.size(0) == log_p.size(0) &&
                      rows.size(1) == log_p.size(1),
                  name, " must be contiguous float64 (B, N)");
}

inline void check_prior(const Tensor& prior, const Tensor& mass) {
  for (const Tensor* tensor : {&prior, &mass}) {
    STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Double && tensor->is_contiguous() &&
                        tensor->dim() == 2 && tensor->size(0) == mass.size(0) &&
                        tensor->size(1) == mass.size(1),
                    "prior and mass must be contiguous float64 (B, K)");
  }
}

inline void check_accumulate(const Tensor& store, const std::vector<Tensor>& logits,
                             const Tensor& index, const std::optional<Tensor>& weight) {
  STD_TORCH_CHECK(store.dim() == 3 && (store.scalar_type() == ScalarType::Float ||
                                       store.scalar_type() == ScalarType::Double),
                  "store must be float32 or float64 (H, N, K)");
  STD_TORCH_CHECK(
      index.dim() == 1 && index.scalar_type() == ScalarType::Long && index.is_contiguous(),
      "index must be contiguous int64 (B,)");
  for (const Tensor& tensor : logits) {
    STD_TORCH_CHECK(tensor.dim() == 3 && tensor.size(0) == store.size(0) &&
                        tensor.size(1) == index.size(0) && tensor.size(2) == store.size(2),
                    "each of logits must be (H, B, K)");
    dispatch_floating(tensor, "logits", [](auto) {});  // raises here, not on a worker thread
  }
  if (weight.has_value()) {
    STD_TORCH_CHECK(weight->scalar_type() == ScalarType::Double && weight->is_contiguous() &&
                        weight->dim() == 2 &&
                        weight->size(0) == static_cast<int64_t>(logits.size()) &&
                        weight->size(1) == index.size(0),
                    "weight must be contiguous float64 (M, B)");
  }
}

inline const double* doubles(const Tensor& tensor) {
  return static_cast<const double*>(tensor.const_data_ptr());
}

inline double* mutable_doubles(const Tensor& tensor) {
  return static_cast<double*>(tensor.mutable_data_ptr());
}

}  // namespace selavi
