// sinkhorn_column_logsumexp on the GPU. Definition: selavi/ops/_definition.py.
#include <algorithm>

#include "launcher.h"
#include "matrices_of.h"
#include "sinkhorn_columns.cuh"

namespace selavi::cuda {
namespace {

constexpr int64_t kChunkRows = 512;  // at least
constexpr int64_t kMostChunks = 512;

Tensor sinkhorn_column_logsumexp(const Tensor& log_p, const Tensor& u, const Tensor& lam) {
  STD_TORCH_CHECK(log_p.dim() == 3, "log_p must be (B, N, K)");
  check_each_row(log_p, u, "u");
  check_lam(log_p, lam);
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  Launcher launcher(log_p);
  Tensor merged = torch::stable::new_empty(u, {problems, columns});
  if (problems * columns == 0) return merged;
  const int64_t chunks = std::clamp(ceil_div(n, kChunkRows), int64_t{1}, kMostChunks);
  auto* const partial = launcher.allocate<RunningSum>(problems * chunks * columns);
  const auto geometry = [&](int64_t tasks) {
    return Geometry{blocks_of(tile_blocks(problems, columns, tasks)),
                    kTileThreads, kTileThreads * sizeof(RunningSum)};
  };
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    const auto matrices = matrices_of<Storage>(log_p);
    launcher.launch("sinkhorn_column_logsumexp", geometry(chunks), column_logsumexp_kernel<Storage>,
                    matrices, doubles(u), doubles(lam), chunks, partial);
    launcher.launch("sinkhorn_column_logsumexp (merge)", geometry(1), merge_columns_kernel<Storage>,
                    matrices, chunks, partial, mutable_doubles(merged));
  });
  return merged;
}

}  // namespace
}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) {
  m.impl("sinkhorn_column_logsumexp", TORCH_BOX(&selavi::cuda::sinkhorn_column_logsumexp));
}
