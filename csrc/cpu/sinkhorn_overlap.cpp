// sinkhorn_overlap on the CPU. What it gives only shapes a Newton step, so that it may be of less
// precision where that is faster.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

#include "sinkhorn_common.h"

namespace selavi::cpu {
namespace {

constexpr int64_t kChunk = 4096;       // rows that are held
constexpr double kNegligible = 1e-15;  // keeps their products out of float's slow denormals

struct Tile {
  int64_t j, k;  // where it begins
};

// Those that have anything on the diagonal or above it.
template <typename Number>
std::vector<Tile> upper_tiles(int64_t columns) {
  const int64_t height = gram<Number>().height, width = gram<Number>().width;
  std::vector<Tile> tiles;
  for (int64_t k = 0; k < columns; k += width) {
    for (int64_t j = 0; j < std::min(k + width, columns); j += height) tiles.push_back({j, k});
  }
  return tiles;
}

// rows = sqrt(c_i) pi_ik for i in [first, last) of problem b.
template <typename Storage>
void write_rows(const Tensor& log_p, int64_t b, const Potential<Compute<Storage>>& potential,
                const double* roots, int64_t first, int64_t last, int64_t stride,
                Compute<Storage>* rows) {
  using Number = Compute<Storage>;
  const Output element = gram<Number>().element;
  const int64_t each = element == Output::kBFloat16Pairs ? 2 : 1;
  const int64_t elements = (last - first + each - 1) / each;
  torch::stable::parallel_for(0, elements, kMinRows, [&](int64_t begin, int64_t end) {
    Scratch<Number> scratch((kTile + 1) * padded(log_p.size(2)));
    const RowBlock<Storage> block = {matrix_of<Storage>(log_p, b), first + begin * each,
                                     std::min(first + end * each, last)};
    row_kernels<Storage>().scaled_softmax(block, potential, roots, kNegligible, scratch.data(),
                                          rows + begin * stride, stride, element);
  });
}

// overlap (K, K) += rows^T rows, on the diagonal and above.
template <typename Number>
void add_gram(const Number* rows, int64_t count, int64_t stride, const std::vector<Tile>& tiles,
              int64_t columns, double* overlap) {
  const Gram<Number>& kernel = gram<Number>();
  const auto work = static_cast<int64_t>(tiles.size());
  torch::stable::parallel_for(0, work, 1, [&](int64_t begin, int64_t end) {
    Scratch<Number> sums(kernel.height * kernel.width);
    for (int64_t t = begin; t < end; ++t) {
      const auto [j, k] = tiles[static_cast<size_t>(t)];
      kernel.tile(rows, count, stride, j, k, sums.data());
      const int64_t height = std::min(kernel.height, columns - j);
      const int64_t width = std::min(kernel.width, columns - k);
      for (int64_t m = 0; m < height; ++m) {
        double* target = overlap + (j + m) * columns + k;
        for (int64_t n = 0; n < width; ++n) target[n] += sums.data()[m * kernel.width + n];
      }
    }
  });
}

void mirror(double* overlap, int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t k = 0; k < j; ++k) overlap[j * columns + k] = overlap[k * columns + j];
  }
}

Tensor sinkhorn_overlap(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                        const Tensor& lam) {
  check_matrix(log_p, v, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  STD_TORCH_CHECK(v.dim() == 2, "v must be (B, K)");
  const int64_t problems = log_p.size(0), n = log_p.size(1), columns = log_p.size(2);
  Tensor overlap = torch::stable::new_zeros(v, {problems, columns, columns});
  std::vector<double> roots(static_cast<size_t>(n));
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    using Number = Compute<Storage>;
    const int64_t width = gram<Number>().width, stride = (columns + width - 1) / width * width;
    const int64_t each = gram<Number>().element == Output::kBFloat16Pairs ? 2 : 1;
    const std::vector<Tile> tiles = upper_tiles<Number>(columns);
    Scratch<Number> rows((std::min(n, kChunk) + each - 1) / each * stride);  // the padding stays 0
    for (int64_t b = 0; b < problems; ++b) {
      const double* weight = doubles(row_marginal) + b * n;
      std::transform(weight, weight + n, roots.begin(), [](double c) { return std::sqrt(c); });
      if (std::all_of(weight, weight + n, [](double c) { return c == 0.0; })) {
        continue;  // a solver has finished with this problem
      }
      PotentialParts<Number> parts(doubles(v) + b * columns, doubles(lam)[b], columns);
      double* target = mutable_doubles(overlap) + b * columns * columns;
      for (int64_t first = 0; first < n; first += kChunk) {
        const int64_t last = std::min(first + kChunk, n);
        write_rows<Storage>(log_p, b, parts.view(), roots.data(), first, last, stride, rows.data());
        add_gram(rows.data(), (last - first + each - 1) / each, stride, tiles, columns, target);
      }
      mirror(target, columns);
    }
  });
  return overlap;
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_overlap", TORCH_BOX(&selavi::cpu::sinkhorn_overlap));
}
