// sinkhorn_labels and sinkhorn_plan on the GPU. Definitions: selavi/ops/_definition.py.
#include <tuple>

#include "launcher.h"
#include "matrices_of.h"
#include "sinkhorn_rows.cuh"

namespace selavi::cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor> sinkhorn_labels(const Tensor& log_p, const Tensor& v,
                                                   const Tensor& lam) {
  check_matrix(log_p, v, 2, lam);
  const int64_t problems = log_p.size(0), n = log_p.size(1);
  Launcher launcher(log_p);
  Tensor labels = torch::stable::new_empty(v, {problems, n}, ScalarType::Long);
  Tensor logsumexp = torch::stable::new_empty(v, {problems, n});
  Tensor confidence = torch::stable::new_empty(v, {problems, n});
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    launch_rows(launcher, "sinkhorn_labels", matrices_of<Storage>(log_p), labels_kernel<Storage, 1>,
                labels_kernel<Storage, kWideWarps>, doubles(v), doubles(lam),
                static_cast<int64_t*>(labels.mutable_data_ptr()), mutable_doubles(logsumexp),
                mutable_doubles(confidence));
  });
  return {labels, logsumexp, confidence};
}

Tensor sinkhorn_plan(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                     const Tensor& lam, ScalarType dtype) {
  check_matrix(log_p, v, 2, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  Launcher launcher(log_p);
  Tensor plan = torch::stable::new_empty(v, {log_p.size(0), log_p.size(1), log_p.size(2)}, dtype);
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    dispatch_dtype(dtype, "dtype", [&](auto output_tag) {
      using Output = typename decltype(output_tag)::type;
      launch_rows(launcher, "sinkhorn_plan", matrices_of<Storage>(log_p),
                  plan_kernel<Storage, Output, 1>, plan_kernel<Storage, Output, kWideWarps>,
                  doubles(v), doubles(row_marginal), doubles(lam),
                  static_cast<Output*>(plan.mutable_data_ptr()));
    });
  });
  return plan;
}

}  // namespace
}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) {
  m.impl("sinkhorn_labels", TORCH_BOX(&selavi::cuda::sinkhorn_labels));
  m.impl("sinkhorn_plan", TORCH_BOX(&selavi::cuda::sinkhorn_plan));
}
