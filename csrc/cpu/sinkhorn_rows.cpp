// sinkhorn_labels and sinkhorn_plan on the CPU: what needs one row at a time.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "sinkhorn_common.h"

namespace selavi::cpu {
namespace {

Output output_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return Output::kFloat;
    case ScalarType::Double:
      return Output::kDouble;
    case ScalarType::BFloat16:
      return Output::kBFloat16;
    case ScalarType::Half:
      return Output::kFloat16;
    default:
      STD_TORCH_CHECK(false, "dtype must be float32, float64, bfloat16 or float16");
  }
}

Tensor sinkhorn_plan(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                     const Tensor& lam, ScalarType dtype) {
  check_matrix(log_p, v, 2, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  Tensor plan = torch::stable::new_empty(v, {problems, n, columns}, dtype);
  const Output output = output_of(dtype);
  const int64_t bytes = output == Output::kDouble ? 8 : output == Output::kFloat ? 4 : 2;
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (int64_t b = 0; b < problems; ++b) {
      PotentialParts<Compute<Storage>> parts(doubles(v) + b * columns, doubles(lam)[b], columns);
      auto* data = static_cast<char*>(plan.mutable_data_ptr()) + bytes * b * n * columns;
      torch::stable::parallel_for(0, n, kMinRows, [&](int64_t first, int64_t last) {
        Scratch<Compute<Storage>> scratch((kTile + 1) * padded(columns));
        row_kernels<Storage>().scaled_softmax({matrix_of<Storage>(log_p, b), first, last},
                                              parts.view(), doubles(row_marginal) + b * n, 0.0,
                                              scratch.data(), data + bytes * first * columns,
                                              columns, output);
      });
    }
  });
  return plan;
}

// labels = argmax_k x_ik (ties to the lowest k), logsumexp_i, and confidence = max_k softmax_k.
std::tuple<Tensor, Tensor, Tensor> sinkhorn_labels(const Tensor& log_p, const Tensor& v,
                                                   const Tensor& lam) {
  check_matrix(log_p, v, 2, lam);
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  Tensor labels = torch::stable::new_empty(v, {problems, n}, ScalarType::Long);
  Tensor logsumexp = torch::stable::new_empty(v, {problems, n});
  Tensor confidence = torch::stable::new_empty(v, {problems, n});
  auto* label_data = static_cast<int64_t*>(labels.mutable_data_ptr());
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (int64_t b = 0; b < problems; ++b) {
      const double* problem_v = doubles(v) + b * columns;
      PotentialParts<Compute<Storage>> parts(problem_v, doubles(lam)[b], columns);
      torch::stable::parallel_for(0, n, kMinRows, [&](int64_t first, int64_t last) {
        Scratch<Compute<Storage>> scratch((kTile + 1) * padded(columns));
        row_kernels<Storage>().labels({matrix_of<Storage>(log_p, b), first, last}, parts.view(),
                                      doubles(lam)[b], problem_v, scratch.data(),
                                      label_data + b * n, mutable_doubles(logsumexp) + b * n,
                                      mutable_doubles(confidence) + b * n);
      });
    }
  });
  return {labels, logsumexp, confidence};
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_plan", TORCH_BOX(&selavi::cpu::sinkhorn_plan));
  m.impl("sinkhorn_labels", TORCH_BOX(&selavi::cpu::sinkhorn_labels));
}
