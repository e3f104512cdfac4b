// The primitives of the Sinkhorn solvers on the CPU. Definitions: selavi/ops/_definition.py.
//
// Rows are cut into blocks whose size depends on the shape alone and whose sums are added in order,
// so the result does not depend on the number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "dispatch.h"
#include "row_kernels.h"

namespace selavi::cpu {
namespace {

constexpr int64_t kBlocks = 64;         // blocks a problem at most: enough to share among cores
constexpr int64_t kMinBlockRows = 64;   // below that a block is not worth a task
constexpr int64_t kOverlapRows = 4096;  // rows of one matrix product in sinkhorn_overlap
constexpr double kNegligible = 1e-15;   // keeps that product out of float's slow denormals

struct Blocks {
  int64_t rows;
  int64_t count;

  explicit Blocks(int64_t n)
      : rows(std::max(kMinBlockRows, (n + kBlocks - 1) / kBlocks)), count((n + rows - 1) / rows) {}
};

void check_matrix(const Tensor& log_p, const Tensor& v, const Tensor& lam) {
  STD_TORCH_CHECK(log_p.dim() == 3, "log_p must be (B, N, K)");
  STD_TORCH_CHECK(v.scalar_type() == ScalarType::Double && v.is_contiguous(),
                  "v must be contiguous float64");
  STD_TORCH_CHECK(v.size(0) == log_p.size(0) && v.size(v.dim() - 1) == log_p.size(2),
                  "v must have the B and K of log_p");
  STD_TORCH_CHECK(lam.scalar_type() == ScalarType::Double && lam.is_contiguous() &&
                      lam.dim() == 1 && lam.size(0) == log_p.size(0),
                  "lam must be contiguous float64 (B,)");
}

void check_row_marginal(const Tensor& log_p, const Tensor& row_marginal) {
  STD_TORCH_CHECK(row_marginal.scalar_type() == ScalarType::Double &&
                      row_marginal.is_contiguous() && row_marginal.dim() == 2 &&
                      row_marginal.size(0) == log_p.size(0) &&
                      row_marginal.size(1) == log_p.size(1),
                  "row_marginal must be contiguous float64 (B, N)");
}

// Adds sum_i c_i pi_ik to mass (S, K) and sum_i c_i logsumexp_i to value (S) over rows [first,
// last).
template <typename Storage>
void pass_block(const MatrixView<Storage>& matrix, const double* v, int64_t candidates,
                const double* weight, double lam, int64_t first, int64_t last, double* mass,
                double* value) {
  const int64_t columns = matrix.columns;
  RowReader<Storage> reader(matrix);
  std::vector<double> x(static_cast<size_t>(columns));
  std::vector<Compute<Storage>> exponentials(static_cast<size_t>(columns));
  for (int64_t i = first; i < last; ++i) {
    if (weight[i] == 0.0) continue;
    const auto* row = reader.row(i, last);
    for (int64_t s = 0; s < candidates; ++s) {
      const RowSoftmax softmax =
          softmax_row(row, v + s * columns, lam, columns, x.data(), exponentials.data());
      add_scaled_row(exponentials.data(), weight[i] / softmax.sum, columns, mass + s * columns);
      value[s] += weight[i] * (softmax.max + std::log(softmax.sum));
    }
  }
}

std::tuple<Tensor, Tensor> sinkhorn_pass(const Tensor& log_p, const Tensor& v,
                                         const Tensor& row_marginal, const Tensor& lam) {
  check_matrix(log_p, v, lam);
  check_row_marginal(log_p, row_marginal);
  STD_TORCH_CHECK(v.dim() == 3, "v must be (B, S, K)");
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  const int64_t candidates = v.size(1);
  Tensor mass = torch::stable::new_zeros(v, {problems, candidates, columns});
  Tensor value = torch::stable::new_zeros(v, {problems, candidates});
  const Blocks blocks(n);
  const int64_t width = candidates * (columns + 1);  // a block's mass, then its value
  std::vector<double> partial(static_cast<size_t>(problems * blocks.count * width), 0.0);
  const auto* v_data = static_cast<const double*>(v.const_data_ptr());
  const auto* weight = static_cast<const double*>(row_marginal.const_data_ptr());
  const auto* lam_data = static_cast<const double*>(lam.const_data_ptr());

  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    torch::stable::parallel_for(0, problems * blocks.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t b = task / blocks.count, first = (task % blocks.count) * blocks.rows;
        double* block_mass = partial.data() + task * width;
        pass_block(matrix_of<Storage>(log_p, b), v_data + b * candidates * columns, candidates,
                   weight + b * n, lam_data[b], first, std::min(first + blocks.rows, n), block_mass,
                   block_mass + candidates * columns);
      }
    });
  });

  auto* mass_data = static_cast<double*>(mass.mutable_data_ptr());
  auto* value_data = static_cast<double*>(value.mutable_data_ptr());
  for (int64_t task = 0; task < problems * blocks.count; ++task) {
    const int64_t b = task / blocks.count;
    const double* block = partial.data() + task * width;
    for (int64_t j = 0; j < candidates * columns; ++j) {
      mass_data[b * candidates * columns + j] += block[j];
    }
    for (int64_t s = 0; s < candidates; ++s) {
      value_data[b * candidates + s] += block[candidates * columns + s];
    }
  }
  return {mass, value};
}

// Writes sqrt(c_i) pi_i for rows [first, last) to `out`, which starts at row `origin`.
template <typename Storage>
void weighted_softmax_rows(const MatrixView<Storage>& matrix, const double* v, const double* weight,
                           double lam, int64_t first, int64_t last, int64_t origin,
                           Compute<Storage>* out) {
  const int64_t columns = matrix.columns;
  RowReader<Storage> reader(matrix);
  std::vector<double> x(static_cast<size_t>(columns));
  for (int64_t i = first; i < last; ++i) {
    Compute<Storage>* target = out + (i - origin) * columns;
    if (weight[i] == 0.0) {
      std::fill(target, target + columns, Compute<Storage>(0));
      continue;
    }
    const RowSoftmax softmax = softmax_row(reader.row(i, last), v, lam, columns, x.data(), target);
    const auto factor = static_cast<Compute<Storage>>(std::sqrt(weight[i]) / softmax.sum);
    for (int64_t k = 0; k < columns; ++k) {
      target[k] = target[k] < kNegligible ? Compute<Storage>(0) : target[k] * factor;
    }
  }
}

// sum_i c_i pi_i pi_i^T, by matrix products over chunks of rows.
Tensor sinkhorn_overlap(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                        const Tensor& lam) {
  check_matrix(log_p, v, lam);
  check_row_marginal(log_p, row_marginal);
  STD_TORCH_CHECK(v.dim() == 2, "v must be (B, K)");
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  Tensor overlap = torch::stable::new_zeros(v, {problems, columns, columns});
  auto* overlap_data = static_cast<double*>(overlap.mutable_data_ptr());
  const auto* v_data = static_cast<const double*>(v.const_data_ptr());
  const auto* weight = static_cast<const double*>(row_marginal.const_data_ptr());
  const auto* lam_data = static_cast<const double*>(lam.const_data_ptr());

  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using Number = Compute<Storage>;
    constexpr auto kDtype = std::is_same_v<Number, double> ? ScalarType::Double : ScalarType::Float;
    for (int64_t b = 0; b < problems; ++b) {
      const double* problem_weight = weight + b * n;
      if (std::all_of(problem_weight, problem_weight + n, [](double c) { return c == 0.0; })) {
        continue;  // a solver has finished with this problem
      }
      for (int64_t origin = 0; origin < n; origin += kOverlapRows) {
        const int64_t stop = std::min(origin + kOverlapRows, n);
        Tensor rows = torch::stable::new_empty(v, {stop - origin, columns}, kDtype);
        auto* rows_data = static_cast<Number*>(rows.mutable_data_ptr());
        torch::stable::parallel_for(origin, stop, kMinBlockRows, [&](int64_t first, int64_t last) {
          weighted_softmax_rows(matrix_of<Storage>(log_p, b), v_data + b * columns, problem_weight,
                                lam_data[b], first, last, origin, rows_data);
        });
        const Tensor product = torch::stable::matmul(torch::stable::transpose(rows, 0, 1), rows);
        const auto* product_data = static_cast<const Number*>(product.const_data_ptr());
        double* target = overlap_data + b * columns * columns;
        for (int64_t j = 0; j < columns * columns; ++j) target[j] += product_data[j];
      }
    }
  });
  return overlap;
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
  const auto* v_data = static_cast<const double*>(v.const_data_ptr());
  const auto* lam_data = static_cast<const double*>(lam.const_data_ptr());
  auto* label_data = static_cast<int64_t*>(labels.mutable_data_ptr());
  auto* logsumexp_data = static_cast<double*>(logsumexp.mutable_data_ptr());
  auto* confidence_data = static_cast<double*>(confidence.mutable_data_ptr());

  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    for (int64_t b = 0; b < problems; ++b) {
      torch::stable::parallel_for(0, n, kMinBlockRows, [&](int64_t first, int64_t last) {
        RowReader<Storage> reader(matrix_of<Storage>(log_p, b));
        std::vector<double> x(static_cast<size_t>(columns));
        std::vector<Compute<Storage>> exponentials(static_cast<size_t>(columns));
        for (int64_t i = first; i < last; ++i) {
          const RowSoftmax softmax =
              softmax_row(reader.row(i, last), v_data + b * columns, lam_data[b], columns, x.data(),
                          exponentials.data());
          const auto best = std::find(x.begin(), x.end(), softmax.max);
          label_data[b * n + i] = best == x.end() ? 0 : best - x.begin();
          logsumexp_data[b * n + i] = softmax.max + std::log(softmax.sum);
          confidence_data[b * n + i] = 1.0 / softmax.sum;
        }
      });
    }
  });
  return {labels, logsumexp, confidence};
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_pass", TORCH_BOX(&selavi::cpu::sinkhorn_pass));
  m.impl("sinkhorn_overlap", TORCH_BOX(&selavi::cpu::sinkhorn_overlap));
  m.impl("sinkhorn_labels", TORCH_BOX(&selavi::cpu::sinkhorn_labels));
}
