// sinkhorn_overlap in CUDA. Definition: selavi/ops/_definition.py.
#include "launcher.h"
#include "matrices_of.h"
#include "sinkhorn_overlap.cuh"

namespace selavi::cuda {
namespace {

template <int kTile, typename Number>
void sum_shares(Launcher& launcher, const GramPlan& plan, int64_t problems, const Number* partial,
                const int* live, double* out) {
  constexpr int64_t kPatches = (kTile / kPatch) * (kTile / kPatch);
  Geometry geometry{blocks_of(problems * plan.pairs * kPatches), kGramThreads};
  geometry.shared = kPatch * (kPatch + 1) * sizeof(double);
  launcher.launch("sinkhorn_overlap: sum", geometry, overlap_kernel<kTile, Number>, plan, partial,
                  live, out);
}

template <int kTile, int kRows, typename Storage>
void launch_gram(Launcher& launcher, const Matrices<Storage>& log_p,
                 const Potentials<float>& potentials, const RowShift<float>* shifts,
                 const int* live, double* out) {
  const GramPlan plan = gram_plan(log_p.problems, log_p.rows, log_p.columns, kTile);
  const int64_t blocks = log_p.problems * plan.shares * plan.pairs;
  auto* partial = launcher.allocate<float>(blocks * kTile * kTile);
  Geometry geometry{blocks_of(blocks), kGramThreads};
  geometry.shared = 4 * kRows * Stage<Storage, kTile, kRows>::kPitch * sizeof(BFloat16) +
                    2 * kRows * sizeof(RowShift<float>);
  if (blocks > 0) {
    launcher.launch("sinkhorn_overlap: products", geometry, gram_kernel<Storage, kTile, kRows>,
                    log_p, potentials, plan, shifts, live, partial);
  }
  sum_shares<kTile>(launcher, plan, log_p.problems, partial, live, out);
}

void launch_gram_double(Launcher& launcher, const Matrices<double>& log_p,
                        const Potentials<double>& potentials, const RowShift<double>* shifts,
                        const int* live, double* out) {
  const GramPlan plan = gram_plan(log_p.problems, log_p.rows, log_p.columns, kDoubleTile);
  const int64_t blocks = log_p.problems * plan.shares * plan.pairs;
  auto* partial = launcher.allocate<double>(blocks * kDoubleTile * kDoubleTile);
  Geometry geometry{blocks_of(blocks), kGramThreads};
  geometry.shared = 2 * kDoubleRows * kDoubleTile * sizeof(double);
  if (blocks > 0) {
    launcher.launch("sinkhorn_overlap: products in float64", geometry, gram_double_kernel, log_p,
                    potentials, plan, shifts, live, partial);
  }
  sum_shares<kDoubleTile>(launcher, plan, log_p.problems, partial, live, out);
}

template <typename Storage>
void overlap(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal, const Tensor& lam,
             double* out) {
  using Number = Compute<Storage>;
  const Matrices<Storage> matrices = matrices_of<Storage>(log_p);
  const int64_t problems = matrices.problems, columns = matrices.columns;
  const int64_t rows = problems * matrices.rows;
  Launcher launcher(v);
  auto* live = launcher.allocate<int>(problems);
  auto* hi = launcher.allocate<float>(problems * columns);
  auto* lo = launcher.allocate<float>(problems * columns);
  auto* scale = launcher.allocate<BlockScale>(problems);
  Geometry geometry{blocks_of(problems), kOverlapRowThreads};
  geometry.shared = kOverlapRowThreads / kWarp * sizeof(double);
  launcher.launch("sinkhorn_overlap: potentials", geometry, split_potentials_kernel, doubles(v),
                  doubles(lam), columns, hi, lo, scale, live);
  Potentials<Number> potentials;
  if constexpr (std::is_same_v<Number, double>) {
    potentials = {doubles(v), doubles(lam)};
  } else {
    potentials = {hi, lo, scale};
  }
  auto* shifts = launcher.allocate<RowShift<Number>>(rows);
  if (rows > 0) {
    geometry.grid = blocks_of(ceil_div(rows, kOverlapRowThreads / kWarp));
    geometry.shared = 0;
    launcher.launch("sinkhorn_overlap: rows", geometry, row_shifts_kernel<Storage>, matrices,
                    potentials, doubles(row_marginal), shifts, live);
  }
  if constexpr (std::is_same_v<Number, double>) {
    launch_gram_double(launcher, matrices, potentials, shifts, live, out);
  } else if (columns <= 64) {
    launch_gram<64, 64>(launcher, matrices, potentials, shifts, live, out);
  } else {
    launch_gram<128, 16>(launcher, matrices, potentials, shifts, live, out);
  }
}

Tensor sinkhorn_overlap(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                        const Tensor& lam) {
  check_matrix(log_p, v, 2, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  const int64_t problems = log_p.size(0), columns = log_p.size(2);
  Tensor out = torch::stable::new_empty(v, {problems, columns, columns});
  if (problems * columns == 0) return out;
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    overlap<Storage>(log_p, v, row_marginal, lam, mutable_doubles(out));
  });
  return out;
}

}  // namespace
}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) { m.impl("sinkhorn_overlap", TORCH_BOX(&selavi::cuda::sinkhorn_overlap)); }
