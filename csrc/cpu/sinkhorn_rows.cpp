// sinkhorn_overlap, sinkhorn_labels and sinkhorn_plan on the CPU: what needs one row at a time.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "sinkhorn_common.h"

namespace selavi::cpu {
namespace {

constexpr int64_t kOverlapRows = 4096;  // rows of one matrix product in sinkhorn_overlap
constexpr double kNegligible = 1e-15;   // keeps that product out of float's slow denormals

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

// Rows [first, last) of problem b, scaled by factor (N), to `out`.
template <typename Storage>
void write_rows(const Tensor& log_p, const Potential<Compute<Storage>>& potential, int64_t b,
                const double* factor, double least, int64_t first, int64_t last, const Tensor& out,
                int64_t out_row) {
  const int64_t columns = log_p.size(2);
  const Output output = output_of(out.scalar_type());
  const int64_t bytes = output == Output::kDouble ? 8 : output == Output::kFloat ? 4 : 2;
  auto* data = static_cast<char*>(out.mutable_data_ptr()) + bytes * columns * (out_row - first);
  torch::stable::parallel_for(first, last, kMinRows, [&](int64_t begin, int64_t end) {
    Scratch<Compute<Storage>> scratch((kTile + 1) * padded(columns));
    row_kernels<Storage>().scaled_softmax({matrix_of<Storage>(log_p, b), begin, end}, potential,
                                          factor, least, scratch.data(),
                                          data + bytes * columns * begin, output);
  });
}

// sum += rows^T rows
void add_gram(const Tensor& rows, double* sum) {
  const Tensor product = torch::stable::matmul(torch::stable::transpose(rows, 0, 1), rows);
  const int64_t columns = rows.size(1);
  const auto add = [&](auto tag) {
    const auto* data = static_cast<const typename decltype(tag)::type*>(product.const_data_ptr());
    torch::stable::parallel_for(0, columns, kMinRows, [&](int64_t first, int64_t last) {
      for (int64_t j = first * columns; j < last * columns; ++j) sum[j] += widen(data[j]);
    });
  };
  dispatch_floating(product, "product", add);
}

// The rows in less precision where that makes the products fast: they only shape a Newton step.
ScalarType gram_dtype(const Tensor& log_p) {
  if (log_p.scalar_type() == ScalarType::Double) return ScalarType::Double;
  return has_fast_bfloat16() ? ScalarType::BFloat16 : ScalarType::Float;
}

Tensor sinkhorn_overlap(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                        const Tensor& lam) {
  check_matrix(log_p, v, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  STD_TORCH_CHECK(v.dim() == 2, "v must be (B, K)");
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  Tensor overlap = torch::stable::new_zeros(v, {problems, columns, columns});
  std::vector<double> roots(static_cast<size_t>(n));
  for (int64_t b = 0; b < problems; ++b) {
    const double* weight = doubles(row_marginal) + b * n;
    std::transform(weight, weight + n, roots.begin(), [](double c) { return std::sqrt(c); });
    if (std::all_of(weight, weight + n, [](double c) { return c == 0.0; })) {
      continue;  // a solver has finished with this problem
    }
    dispatch_floating(log_p, "log_p", [&](auto tag) {
      using Storage = typename decltype(tag)::type;
      PotentialParts<Compute<Storage>> parts(doubles(v) + b * columns, doubles(lam)[b], columns);
      for (int64_t first = 0; first < n; first += kOverlapRows) {
        const int64_t last = std::min(first + kOverlapRows, n);
        const Tensor rows = torch::stable::new_empty(v, {last - first, columns}, gram_dtype(log_p));
        write_rows<Storage>(log_p, parts.view(), b, roots.data(), kNegligible, first, last, rows,
                            0);
        add_gram(rows, mutable_doubles(overlap) + b * columns * columns);
      }
    });
  }
  return overlap;
}

Tensor sinkhorn_plan(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                     const Tensor& lam, ScalarType dtype) {
  check_matrix(log_p, v, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  STD_TORCH_CHECK(v.dim() == 2, "v must be (B, K)");
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  Tensor plan = torch::stable::new_empty(v, {problems, n, columns}, dtype);
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (int64_t b = 0; b < problems; ++b) {
      PotentialParts<Compute<Storage>> parts(doubles(v) + b * columns, doubles(lam)[b], columns);
      write_rows<Storage>(log_p, parts.view(), b, doubles(row_marginal) + b * n, 0.0, 0, n, plan,
                          b * n);
    }
  });
  return plan;
}

// labels = argmax_k x_ik (ties to the lowest k), logsumexp_i, and confidence = max_k softmax_k.
std::tuple<Tensor, Tensor, Tensor> sinkhorn_labels(const Tensor& log_p, const Tensor& v,
                                                   const Tensor& lam) {
  check_matrix(log_p, v, lam);
  STD_TORCH_CHECK(v.dim() == 2, "v must be (B, K)");
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
  m.impl("sinkhorn_overlap", TORCH_BOX(&selavi::cpu::sinkhorn_overlap));
  m.impl("sinkhorn_plan", TORCH_BOX(&selavi::cpu::sinkhorn_plan));
  m.impl("sinkhorn_labels", TORCH_BOX(&selavi::cpu::sinkhorn_labels));
}
