// sinkhorn_pass on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "sinkhorn_common.h"

namespace selavi::cpu {
namespace {

template <typename Storage>
void pass_blocks(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                 const Tensor& lam, const Blocks& blocks, double* partial) {
  using Number = Compute<Storage>;
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  const int64_t candidates = v.size(1), masses = candidates * padded(columns);
  std::vector<PotentialParts<Number>> parts;
  std::vector<Potential<Number>> potentials;
  for (int64_t j = 0; j < problems * candidates; ++j) {
    parts.emplace_back(doubles(v) + j * columns, doubles(lam)[j / candidates], columns);
    potentials.push_back(parts.back().view());
  }
  torch::stable::parallel_for(0, problems * blocks.count, 1, [&](int64_t begin, int64_t end) {
    Scratch<Number> scratch((kTile + kQuad) * padded(columns));
    std::vector<RowSoftmax> softmax(static_cast<size_t>(candidates * kGroup));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks.count, first = (task % blocks.count) * blocks.rows;
      const RowBlock<Storage> block = {matrix_of<Storage>(log_p, b), first,
                                       std::min(first + blocks.rows, n)};
      double* mass = partial + task * (masses + candidates);
      row_kernels<Storage>().pass(block, potentials.data() + b * candidates, candidates,
                                  doubles(row_marginal) + b * n, scratch.data(), softmax.data(),
                                  mass, mass + masses);
    }
  });
}

std::tuple<Tensor, Tensor> sinkhorn_pass(const Tensor& log_p, const Tensor& v,
                                         const Tensor& row_marginal, const Tensor& lam) {
  check_matrix(log_p, v, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  STD_TORCH_CHECK(v.dim() == 3, "v must be (B, S, K)");
  const int64_t problems = log_p.size(0), columns = log_p.size(2), candidates = v.size(1);
  const int64_t masses = candidates * padded(columns);
  const int64_t width = masses + candidates;  // a block's masses, then its values
  const Blocks blocks(log_p.size(1), width);
  std::vector<double> partial(static_cast<size_t>(problems * blocks.count * width), 0.0);
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    pass_blocks<Storage>(log_p, v, row_marginal, lam, blocks, partial.data());
  });

  Tensor mass = torch::stable::new_zeros(v, {problems, candidates, columns});
  Tensor value = torch::stable::new_zeros(v, {problems, candidates});
  for (int64_t task = 0; task < problems * blocks.count; ++task) {
    const double* block = partial.data() + task * width;
    for (int64_t s = 0; s < candidates; ++s) {
      const int64_t row = task / blocks.count * candidates + s;
      double* target = mutable_doubles(mass) + row * columns;
      const double* source = block + s * padded(columns);
      for (int64_t k = 0; k < columns; ++k) target[k] += source[k];
      mutable_doubles(value)[row] += block[masses + s];
    }
  }
  return {mass, value};
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_pass", TORCH_BOX(&selavi::cpu::sinkhorn_pass));
}
