// sinkhorn_iterations in CUDA: on chip where the matrices fit, else one pass an evaluation.
// Definition: selavi/ops/_definition.py.
#include <tuple>

#include "matrices_of.h"
#include "sinkhorn_iterations.cuh"
#include "sinkhorn_pass.h"

namespace selavi::cuda {
namespace {

struct Outputs {
  Tensor v, mass, value;  // (B, K), (B, K), (B)
};

// Launches what `plan` says, so many problems at a time.
template <typename Storage>
void iterate_on_chip(const Tensor& log_p, const Tensor& row_marginal, const Tensor& col_marginal,
                     const Tensor& lam, int count, const OnChipPlan& plan, const Outputs& out) {
  Launcher launcher(log_p);
  const int64_t blocks = plan.problems * plan.blocks;
  OnChipArguments<Storage> arguments = {
      matrices_of<Storage>(log_p),
      doubles(row_marginal),
      doubles(col_marginal),
      doubles(lam),
      mutable_doubles(out.v),
      mutable_doubles(out.mass),
      mutable_doubles(out.value),
      launcher.allocate<double>(blocks * plan.teams() * log_p.size(2)),
      launcher.allocate<double>(blocks),
      0,
      count,
  };
  const int64_t problems = log_p.size(0);
  while (arguments.first_problem < problems) {
    const int64_t some = std::min(plan.problems, problems - arguments.first_problem);
    Geometry geometry{blocks_of(some * plan.blocks), kOnChipThreads};
    geometry.shared = plan.shared;
    geometry.cooperative = true;
    launcher.launch("sinkhorn_iterations on chip", geometry, on_chip_kernel<Storage>, arguments,
                    plan);
    arguments.first_problem += some;
  }
}

void iterate_by_passes(const Tensor& log_p, const Tensor& row_marginal, const Tensor& col_marginal,
                       const Tensor& lam, int64_t count, const Outputs& out) {
  constexpr int kThreads = 256;
  const int64_t elements = log_p.size(0) * log_p.size(2);
  for (int64_t evaluation = 0; evaluation < count; ++evaluation) {
    Launcher launcher(log_p);  // a new one, so that scratch is used again
    if (evaluation > 0) {
      launcher.launch("sinkhorn_iterations: update",
                      {blocks_of(ceil_div(elements, kThreads)), kThreads}, update_potential_kernel,
                      doubles(col_marginal), doubles(out.mass), elements, mutable_doubles(out.v));
    }
    sinkhorn_pass_into(launcher, log_p, doubles(out.v), 1, doubles(row_marginal), doubles(lam),
                       mutable_doubles(out.mass), mutable_doubles(out.value));
  }
}

std::tuple<Tensor, Tensor, Tensor> sinkhorn_iterations(const Tensor& log_p, const Tensor& v,
                                                       const Tensor& row_marginal,
                                                       const Tensor& col_marginal,
                                                       const Tensor& lam, int64_t count) {
  check_matrix(log_p, v, 2, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  STD_TORCH_CHECK(col_marginal.scalar_type() == ScalarType::Double &&
                      col_marginal.is_contiguous() && col_marginal.dim() == 2 &&
                      col_marginal.size(0) == v.size(0) && col_marginal.size(1) == v.size(1),
                  "col_marginal must be contiguous float64 (B, K)");
  STD_TORCH_CHECK(count >= 1 && count <= INT32_MAX, "count must be 1 or more");
  const int64_t problems = v.size(0), columns = v.size(1);
  const Outputs out = {torch::stable::clone(v), torch::stable::new_empty(v, {problems, columns}),
                       torch::stable::new_empty(v, {problems})};
  if (problems * columns == 0) return {out.v, out.mass, out.value};
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    if constexpr (!std::is_same_v<Storage, double>) {
      const Launcher device(log_p);
      const OnChipPlan plan = on_chip_plan(problems, log_p.size(1), columns, sizeof(Storage),
                                           device.multiprocessors(), device.largest_shared());
      if (plan.problems > 0) {
        return iterate_on_chip<Storage>(log_p, row_marginal, col_marginal, lam,
                                        static_cast<int>(count), plan, out);
      }
    }
    iterate_by_passes(log_p, row_marginal, col_marginal, lam, count, out);
  });
  return {out.v, out.mass, out.value};
}

}  // namespace
}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) {
  m.impl("sinkhorn_iterations", TORCH_BOX(&selavi::cuda::sinkhorn_iterations));
}
