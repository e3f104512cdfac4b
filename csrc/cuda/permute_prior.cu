// permute_prior in CUDA. Definition: selavi/ops/_definition.py.
#include "launcher.h"
#include "permute_prior.cuh"

namespace selavi::cuda {
namespace {

Tensor permute_prior(const Tensor& prior, const Tensor& mass) {
  check_prior(prior, mass);
  const int64_t problems = mass.size(0), columns = mass.size(1);
  Tensor permuted = torch::stable::new_empty(mass, {problems, columns});
  if (problems * columns == 0) return permuted;
  Launcher launcher(mass);
  const int64_t blocks = ceil_div(columns, kRankThreads);
  auto* sorted = launcher.allocate<double>(problems * columns);
  auto* rank = launcher.allocate<int64_t>(problems * columns);
  Geometry geometry{blocks_of(problems * blocks), kRankThreads};
  geometry.shared = kRankThreads * sizeof(long long);
  launcher.launch("permute_prior: sort", geometry, sort_prior_kernel, doubles(prior), doubles(mass),
                  columns, blocks, sorted, rank);
  geometry.shared = 0;
  launcher.launch("permute_prior: place", geometry, place_prior_kernel, sorted, rank, columns,
                  blocks, mutable_doubles(permuted));
  return permuted;
}

}  // namespace
}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) { m.impl("permute_prior", TORCH_BOX(&selavi::cuda::permute_prior)); }
