// sinkhorn_column_logsumexp on the CPU.
#include <torch/csrc/stable/library.h>

#include <vector>

#include "sinkhorn_common.h"

namespace selavi::cpu {
namespace {

// Logsumexps of each block of rows, (B, blocks, K).
template <typename Storage>
void block_logsumexps(const Tensor& log_p, const Tensor& u, const Tensor& lam, const Blocks& blocks,
                      double* partial) {
  using Number = Compute<Storage>;
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  std::vector<PotentialParts<Number>> parts;
  for (int64_t b = 0; b < problems; ++b) {
    parts.emplace_back(doubles(u) + b * n, doubles(lam)[b], n);
  }
  torch::stable::parallel_for(0, problems * blocks.count, 1, [&](int64_t begin, int64_t end) {
    Scratch<Number> scratch((kGroup + 2) * padded(std::min(columns, kColumnTile)));
    Scratch<double> running(2 * kColumnTile);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks.count, first = (task % blocks.count) * blocks.rows;
      row_kernels<Storage>().column_logsumexp(
          {matrix_of<Storage>(log_p, b), first, std::min(first + blocks.rows, n)},
          parts[static_cast<size_t>(b)].view(), scratch.data(), running.data(),
          partial + task * columns);
    }
  });
}

// The blocks' logsumexps are merged as the rows of a smaller problem.
void merge_blocks(const std::vector<double>& partial, int64_t count, const Tensor& merged) {
  const int64_t problems = merged.size(0), columns = merged.size(1);
  const std::vector<double> zeros(static_cast<size_t>(count), 0.0);
  PotentialParts<double> rows(zeros.data(), 1.0, count);
  torch::stable::parallel_for(0, columns, kColumnTile, [&](int64_t begin, int64_t end) {
    Scratch<double> scratch((kGroup + 2) * padded(std::min(end - begin, kColumnTile)));
    Scratch<double> running(2 * kColumnTile);
    for (int64_t b = 0; b < problems; ++b) {
      const MatrixView<double> blocks = {partial.data() + b * count * columns + begin, count,
                                         end - begin, columns, 1};
      row_kernels<double>().column_logsumexp({blocks, 0, count}, rows.view(), scratch.data(),
                                             running.data(),
                                             mutable_doubles(merged) + b * columns + begin);
    }
  });
}

Tensor sinkhorn_column_logsumexp(const Tensor& log_p, const Tensor& u, const Tensor& lam) {
  STD_TORCH_CHECK(log_p.dim() == 3, "log_p must be (B, N, K)");
  check_each_row(log_p, u, "u");
  check_lam(log_p, lam);
  const int64_t problems = log_p.size(0), columns = log_p.size(2);
  const Blocks blocks(log_p.size(1), columns);
  std::vector<double> partial(static_cast<size_t>(problems * blocks.count * columns));
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    block_logsumexps<Storage>(log_p, u, lam, blocks, partial.data());
  });
  Tensor merged = torch::stable::new_empty(u, {problems, columns});
  merge_blocks(partial, blocks.count, merged);
  return merged;
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_column_logsumexp", TORCH_BOX(&selavi::cpu::sinkhorn_column_logsumexp));
}
