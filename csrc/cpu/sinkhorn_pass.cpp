// sinkhorn_pass on the CPU.
#include <torch/csrc/stable/library.h>

#include <cmath>
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

// The candidates of each problem that do not begin with NaN: the others are not tried.
struct Tried {
  std::vector<std::vector<const double*>> potentials;  // of problem b
  std::vector<int64_t> place;  // among its problem's, of candidate b * S + s; -1 for none

  explicit Tried(const Tensor& v) : potentials(static_cast<size_t>(v.size(0))) {
    for (int64_t j = 0; j < v.size(0) * v.size(1); ++j) {
      const double* potential = doubles(v) + j * v.size(2);
      auto& others = potentials[static_cast<size_t>(j / v.size(1))];
      const bool is_tried = !std::isnan(potential[0]);
      place.push_back(is_tried ? static_cast<int64_t>(others.size()) : -1);
      if (is_tried) others.push_back(potential);
    }
  }
};

template <typename Storage>
void pass_blocks(const Tensor& log_p, const Tried& tried, int64_t candidates,
                 const Tensor& row_marginal, const Tensor& lam, const Blocks& blocks,
                 double* partial) {
  using Number = Compute<Storage>;
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  const int64_t masses = candidates * padded(columns), width = partial_width(candidates, columns);
  std::vector<PotentialParts<Number>> parts;
  std::vector<std::vector<Potential<Number>>> potentials(tried.potentials.size());
  for (size_t b = 0; b < potentials.size(); ++b) {
    for (const double* v : tried.potentials[b]) {
      parts.emplace_back(v, doubles(lam)[b], columns);
      potentials[b].push_back(parts.back().view());
    }
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
      const auto& mine = potentials[static_cast<size_t>(b)];
      row_kernels<Storage>().pass(block, mine.data(), static_cast<int64_t>(mine.size()),
                                  doubles(row_marginal) + b * n, scratch.data(), softmax.data(),
                                  mass, mass + masses);
    }
  });
}

// The blocks' sums, added in order. Candidates that were not tried get NaN.
std::tuple<Tensor, Tensor> merge_blocks(const Tensor& v, const Tried& tried, const Blocks& blocks,
                                        const double* partial) {
  const int64_t problems = v.size(0), candidates = v.size(1), columns = v.size(2);
  const int64_t masses = candidates * padded(columns), width = partial_width(candidates, columns);
  Tensor mass = torch::stable::new_zeros(v, {problems, candidates, columns});
  Tensor value = torch::stable::new_zeros(v, {problems, candidates});
  double *masses_out = mutable_doubles(mass), *values_out = mutable_doubles(value);
  const auto source = [&](int64_t row, int64_t block) {
    return partial + (row / candidates * blocks.count + block) * width;
  };
  const int64_t rows = problems * candidates;
  torch::stable::parallel_for(0, rows * columns, kMergeGrain, [&](int64_t first, int64_t last) {
    for (int64_t row = first / columns; row * columns < last; ++row) {
      const int64_t begin = std::max(first - row * columns, int64_t{0});
      const int64_t end = std::min(last - row * columns, columns);
      const int64_t place = tried.place[static_cast<size_t>(row)];
      double* target = masses_out + row * columns;
      if (place < 0) std::fill(target + begin, target + end, std::nan(""));
      for (int64_t block = 0; place >= 0 && block < blocks.count; ++block) {
        const double* sums = source(row, block) + place * padded(columns);
        for (int64_t k = begin; k < end; ++k) target[k] += sums[k];
      }
    }
  });
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t place = tried.place[static_cast<size_t>(row)];
    if (place < 0) values_out[row] = std::nan("");
    for (int64_t block = 0; place >= 0 && block < blocks.count; ++block) {
      values_out[row] += source(row, block)[masses + place];
    }
  }
  return {mass, value};
}

std::tuple<Tensor, Tensor> sinkhorn_pass(const Tensor& log_p, const Tensor& v,
                                         const Tensor& row_marginal, const Tensor& lam) {
  check_matrix(log_p, v, 3, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  const int64_t problems = log_p.size(0), candidates = v.size(1);
  const int64_t width = partial_width(candidates, log_p.size(2));
  const Blocks blocks(log_p.size(1), width);
  const Tried tried(v);
  Scratch<double> partial(problems * blocks.count * width);
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    pass_blocks<Storage>(log_p, tried, candidates, row_marginal, lam, blocks, partial.data());
  });
  return merge_blocks(v, tried, blocks, partial.data());
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_pass", TORCH_BOX(&selavi::cpu::sinkhorn_pass));
}
