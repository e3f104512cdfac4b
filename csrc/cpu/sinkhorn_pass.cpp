// sinkhorn_pass on the CPU.
#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "sinkhorn_common.h"

namespace selavi::cpu {
namespace {

constexpr int64_t kMergeGrain = 2048;  // columns below which a thread is not worth starting

// Numbers that a block keeps: its masses, then its values. Aligned like the masses of a candidate.
int64_t partial_width(int64_t candidates, int64_t columns) {
  return candidates * padded(columns) + padded(candidates);
}

template <typename Storage>
void pass_blocks(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                 const Tensor& lam, const Blocks& blocks, double* partial) {
  using Number = Compute<Storage>;
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  const int64_t candidates = v.size(1), masses = candidates * padded(columns);
  const int64_t width = partial_width(candidates, columns);
  std::vector<PotentialParts<Number>> parts;
  std::vector<Potential<Number>> potentials;
  for (int64_t j = 0; j < problems * candidates; ++j) {
    parts.emplace_back(doubles(v) + j * columns, doubles(lam)[j / candidates], columns);
    potentials.push_back(parts.back().view());
  }
  torch::stable::parallel_for(0, problems * blocks.count, 1, [&](int64_t begin, int64_t end) {
    Scratch<Number> scratch(pass_scratch(columns));
    std::vector<RowSoftmax> softmax(static_cast<size_t>(candidates * kGroup));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / blocks.count, first = (task % blocks.count) * blocks.rows;
      const RowBlock<Storage> block = {matrix_of<Storage>(log_p, b), first,
                                       std::min(first + blocks.rows, n)};
      double* mass = partial + task * width;
      std::fill_n(mass, width, 0.0);
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
  const int64_t masses = candidates * padded(columns), width = partial_width(candidates, columns);
  const Blocks blocks(log_p.size(1), width);
  Scratch<double> partial(problems * blocks.count * width);
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    pass_blocks<Storage>(log_p, v, row_marginal, lam, blocks, partial.data());
  });

  Tensor mass = torch::stable::new_zeros(v, {problems, candidates, columns});
  Tensor value = torch::stable::new_zeros(v, {problems, candidates});
  const int64_t rows = problems * candidates;
  const auto source = [&](int64_t row, int64_t block) {
    return partial.data() + (row / candidates * blocks.count + block) * width;
  };
  double *masses_out = mutable_doubles(mass), *values_out = mutable_doubles(value);
  torch::stable::parallel_for(0, rows * columns, kMergeGrain, [&](int64_t first, int64_t last) {
    for (int64_t row = first / columns; row * columns < last; ++row) {
      const int64_t begin = std::max(first - row * columns, int64_t{0});
      const int64_t end = std::min(last - row * columns, columns);
      for (int64_t block = 0; block < blocks.count; ++block) {
        const double* sums = source(row, block) + row % candidates * padded(columns);
        double* target = masses_out + row * columns;
        for (int64_t k = begin; k < end; ++k) target[k] += sums[k];
      }
    }
  });
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t block = 0; block < blocks.count; ++block) {
      values_out[row] += source(row, block)[masses + row % candidates];
    }
  }
  return {mass, value};
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_pass", TORCH_BOX(&selavi::cpu::sinkhorn_pass));
}
