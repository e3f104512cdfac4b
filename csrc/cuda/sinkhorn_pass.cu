// sinkhorn_pass on the GPU. Definition: selavi/ops/_definition.py.
#include <algorithm>
#include <tuple>

#include "matrices_of.h"
#include "sinkhorn_pass.cuh"
#include "sinkhorn_pass.h"
#include "sinkhorn_pass_general.cuh"

namespace selavi::cuda {
namespace {

// Enough to keep any GPU busy to the end. Chunks depend on the shape alone, and so do the results.
constexpr int64_t kWantedBlocks = 2048;
constexpr int kManyCandidates = 7;  // of a block, at most

// Blocks that share a row.
template <typename S>
int cluster_of(int64_t columns) {
  int cluster = 1;
  while (cluster * S::kWidth < columns) cluster *= 2;
  return cluster;
}

template <typename Storage, typename S>
void launch_pass(Launcher& launcher, const PassArguments<Storage>& arguments, double* mass,
                 double* value) {
  const Matrices<Storage>& log_p = arguments.log_p;
  const int64_t pairs = log_p.problems * arguments.candidates;
  const int cluster = cluster_of<S>(log_p.columns);
  constexpr int64_t kStep = S::kTeams * S::kRows;
  const int64_t together = cluster * S::groups(arguments.candidates);  // blocks that read a row
  const int64_t wanted = ceil_div(log_p.problems * log_p.rows * together, kWantedBlocks);
  PassPartials<float> partials;
  partials.chunk_rows = static_cast<int>(
      std::clamp(ceil_div(wanted, kStep) * kStep, kStep, static_cast<int64_t>(S::kMaxRows)));
  partials.chunks = ceil_div(log_p.rows, partials.chunk_rows);
  partials.mass = launcher.allocate<float>(pairs * partials.chunks * log_p.columns);
  partials.value = launcher.allocate<double>(pairs * partials.chunks);
  partials.rows = launcher.allocate<int>(log_p.problems * partials.chunks);
  const int64_t blocks = log_p.problems * partials.chunks * together;
  launcher.launch(
      "sinkhorn_pass",
      {blocks_of(blocks), S::kThreads, PassLayout<S>(partials.chunk_rows).bytes, cluster},
      pass_kernel<Storage, S>, arguments, partials);
  launch_merge(launcher, arguments, partials, mass, value);
}

// Launches the first shape that is wide enough, if there is one.
template <typename... Shapes>
struct ShapeList {
  template <typename Storage>
  static bool launch(Launcher& launcher, const PassArguments<Storage>& arguments, double* mass,
                     double* value) {
    const auto fits = [&](auto shape) {
      using S = decltype(shape);
      const int64_t most = launcher.clusters() ? S::kMaxCluster : 1;
      if (arguments.log_p.columns > most * S::kWidth) return false;
      if (PassLayout<S>(S::kMaxRows).bytes > launcher.largest_shared()) return false;
      launch_pass<Storage, S>(launcher, arguments, mass, value);
      return true;
    };
    return (fits(Shapes{}) || ...);
  }
};

// Lanes, warps, columns a thread, of those surely there, candidates, rows at a time: more where
// elements take less memory, so that enough of it is on its way.
template <int kRows>
using OneCandidate =
    ShapeList<Shape<8, 1, 1, 0, 1, 4>, Shape<8, 1, 2, 1, 1, 4>, Shape<8, 1, 4, 2, 1, 4>,
              Shape<8, 1, 8, 4, 1, kRows>, Shape<32, 1, 4, 2, 1, 4>, Shape<32, 1, 6, 4, 1, kRows>,
              Shape<32, 1, 8, 6, 1, kRows>, Shape<32, 1, 10, 8, 1, kRows>,
              Shape<32, 1, 13, 10, 1, kRows>, Shape<32, 1, 16, 13, 1, 2>,
              Shape<32, 4, 6, 4, 1, kRows>, Shape<32, 4, 8, 6, 1, kRows>, Shape<32, 4, 12, 8, 1, 2>,
              Shape<32, 4, 16, 12, 1, 2>, Shape<32, 8, 16, 8, 1, 2>,
              Shape<32, 8, 32, 0, 1, 2, kMaxCluster>, Shape<32, 16, 32, 0, 1, 1, kMaxCluster>>;

using ManyCandidates =
    ShapeList<Shape<8, 1, 2, 0, kManyCandidates, 2>, Shape<8, 1, 4, 2, kManyCandidates, 2>,
              Shape<32, 1, 4, 1, kManyCandidates, 2>, Shape<32, 2, 5, 2, kManyCandidates, 2>,
              Shape<32, 4, 4, 2, kManyCandidates, 2>, Shape<32, 4, 8, 4, kManyCandidates, 1>,
              Shape<32, 8, 8, 4, kManyCandidates, 1>,
              Shape<32, 8, 8, 0, kManyCandidates, 1, kMaxCluster>>;

template <typename Storage>
void pass(Launcher& launcher, const PassArguments<Storage>& arguments, double* mass,
          double* value) {
  if constexpr (!std::is_same_v<Storage, double>) {
    const bool many = arguments.candidates > 1;
    if (many && ManyCandidates::launch(launcher, arguments, mass, value)) return;
    using One = OneCandidate<(sizeof(Storage) == 2 ? 4 : 2)>;
    if (One::launch(launcher, arguments, mass, value)) return;
  }
  pass_in_two_reads(launcher, arguments, mass, value);
}

std::tuple<Tensor, Tensor> sinkhorn_pass(const Tensor& log_p, const Tensor& v,
                                         const Tensor& row_marginal, const Tensor& lam) {
  check_matrix(log_p, v, 3, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  const int64_t problems = log_p.size(0), columns = log_p.size(2), candidates = v.size(1);
  Launcher launcher(log_p);
  Tensor mass = torch::stable::new_empty(v, {problems, candidates, columns});
  Tensor value = torch::stable::new_empty(v, {problems, candidates});
  sinkhorn_pass_into(launcher, log_p, doubles(v), candidates, doubles(row_marginal), doubles(lam),
                     mutable_doubles(mass), mutable_doubles(value));
  return {mass, value};
}

}  // namespace

void sinkhorn_pass_into(Launcher& launcher, const Tensor& log_p, const double* v,
                        int64_t candidates, const double* row_marginal, const double* lam,
                        double* mass, double* value) {
  if (log_p.size(0) * log_p.size(2) * candidates == 0) return;
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    pass<Storage>(launcher,
                  {matrices_of<Storage>(log_p), v, row_marginal, lam, static_cast<int>(candidates)},
                  mass, value);
  });
}

}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) { m.impl("sinkhorn_pass", TORCH_BOX(&selavi::cuda::sinkhorn_pass)); }
