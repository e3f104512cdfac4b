// sinkhorn_overlap on the CPU. What it gives only shapes a Newton step, so that it may be of less
// precision where that is faster.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

#include "sinkhorn_common.h"

namespace selavi::cpu {
namespace {

constexpr int64_t kHeld = 256;       // rows of elements that a thread holds
constexpr int64_t kMostBlocks = 32;  // each keeps sums of its own
constexpr int64_t kLeastBlocks = 4;  // however many those are
constexpr int64_t kLeastRows = 2048;
constexpr int64_t kColumns = 512;      // of a group of tiles: it pays for softmaxes of its own
constexpr double kNegligible = 1e-15;  // keeps products out of float's slow denormals

struct Tile {
  int64_t j, k;  // where it begins
};

// How the K x K sums are cut: into the tiles that have anything on the diagonal or above it, and
// those into groups. A block of rows has a task for each group.
template <typename Number>
struct GramLayout {
  const Gram<Number>& kernel = gram<Number>();
  int64_t columns, stride, tile_size, groups;
  int64_t rows_an_element = kernel.element == Output::kBFloat16Pairs ? 2 : 1;
  std::vector<Tile> tiles;

  explicit GramLayout(int64_t k)
      : columns(k),
        stride((k + kernel.width - 1) / kernel.width * kernel.width),
        tile_size(kernel.height * kernel.width),
        groups(std::max((k + kColumns / 2) / kColumns, int64_t{1})) {
    for (int64_t right = 0; right < columns; right += kernel.width) {
      for (int64_t left = 0; left < std::min(right + kernel.width, columns); left += kernel.height)
        tiles.push_back({left, right});
    }
  }

  int64_t count() const { return static_cast<int64_t>(tiles.size()); }
};

// sums (tiles, height, width) += those of the block's rows, for one group of tiles.
template <typename Storage>
void add_block(const RowBlock<Storage>& block, const Potential<Compute<Storage>>& potential,
               const double* roots, const GramLayout<Compute<Storage>>& layout, int64_t group,
               Compute<Storage>* rows, Compute<Storage>* scratch, Compute<Storage>* sums) {
  const int64_t held = kHeld * layout.rows_an_element;
  const int64_t begin = layout.count() * group / layout.groups;
  const int64_t end = layout.count() * (group + 1) / layout.groups;
  for (int64_t first = block.first; first < block.last; first += held) {
    const int64_t last = std::min(first + held, block.last);
    row_kernels<Storage>().scaled_softmax({block.matrix, first, last}, potential, roots,
                                          kNegligible, scratch, rows, layout.stride,
                                          layout.kernel.element);
    const int64_t elements = (last - first + layout.rows_an_element - 1) / layout.rows_an_element;
    for (int64_t t = begin; t < end; ++t) {
      const Tile tile = layout.tiles[static_cast<size_t>(t)];
      layout.kernel.add(rows, elements, layout.stride, tile.j, tile.k, sums + t * layout.tile_size);
    }
  }
}

// The blocks' sums (blocks, tiles, height, width), added in order, to overlap (K, K).
template <typename Number>
void merge_blocks(const GramLayout<Number>& layout, int64_t blocks, const Number* sums,
                  double* overlap) {
  torch::stable::parallel_for(0, layout.count(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto [j, k] = layout.tiles[static_cast<size_t>(t)];
      const int64_t height = std::min(layout.kernel.height, layout.columns - j);
      const int64_t width = std::min(layout.kernel.width, layout.columns - k);
      for (int64_t block = 0; block < blocks; ++block) {
        const Number* tile = sums + (block * layout.count() + t) * layout.tile_size;
        for (int64_t m = 0; m < height; ++m) {
          double* target = overlap + (j + m) * layout.columns + k;
          for (int64_t n = 0; n < width; ++n) target[n] += tile[m * layout.kernel.width + n];
        }
      }
    }
  });
  for (int64_t j = 0; j < layout.columns; ++j) {  // what is below the diagonal
    for (int64_t k = 0; k < j; ++k)
      overlap[j * layout.columns + k] = overlap[k * layout.columns + j];
  }
}

template <typename Storage>
void add_problem(const MatrixView<Storage>& matrix, const Potential<Compute<Storage>>& potential,
                 const double* weight, const GramLayout<Compute<Storage>>& layout,
                 double* overlap) {
  using Number = Compute<Storage>;
  std::vector<double> roots(static_cast<size_t>(matrix.rows));
  std::transform(weight, weight + matrix.rows, roots.begin(), [](double c) { return sqrt(c); });
  const int64_t each = layout.count() * layout.tile_size;
  const int64_t wanted =
      std::clamp(kPartialSums / std::max(each, int64_t{1}), kLeastBlocks, kMostBlocks);
  const int64_t block_rows = std::max((matrix.rows + wanted - 1) / wanted, kLeastRows);
  const int64_t blocks = (matrix.rows + block_rows - 1) / block_rows;
  Scratch<Number> sums(blocks * each);
  const int64_t tasks = blocks * layout.groups;
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
    Scratch<Number> rows(kHeld * layout.stride);  // the padding stays 0
    Scratch<Number> scratch((kTile + 1) * padded(layout.columns));
    for (int64_t task = begin; task < end; ++task) {
      const int64_t block = task / layout.groups, first = block * block_rows;
      add_block<Storage>({matrix, first, std::min(first + block_rows, matrix.rows)}, potential,
                         roots.data(), layout, task % layout.groups, rows.data(), scratch.data(),
                         sums.data() + block * each);
    }
  });
  merge_blocks(layout, blocks, sums.data(), overlap);
}

Tensor sinkhorn_overlap(const Tensor& log_p, const Tensor& v, const Tensor& row_marginal,
                        const Tensor& lam) {
  check_matrix(log_p, v, 2, lam);
  check_each_row(log_p, row_marginal, "row_marginal");
  const int64_t n = log_p.size(1), columns = log_p.size(2);
  Tensor overlap = torch::stable::new_zeros(v, {log_p.size(0), columns, columns});
  dispatch_floating(log_p, "log_p", [&](auto tag) {
    using Storage = typename decltype(tag)::type;
    const GramLayout<Compute<Storage>> layout(columns);
    for (int64_t b = 0; b < log_p.size(0); ++b) {
      const double* weight = doubles(row_marginal) + b * n;
      if (std::all_of(weight, weight + n, [](double c) { return c == 0.0; })) {
        continue;  // a solver has finished with this problem
      }
      PotentialParts<Compute<Storage>> parts(doubles(v) + b * columns, doubles(lam)[b], columns);
      add_problem<Storage>(matrix_of<Storage>(log_p, b), parts.view(), weight, layout,
                           mutable_doubles(overlap) + b * columns * columns);
    }
  });
  return overlap;
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("sinkhorn_overlap", TORCH_BOX(&selavi::cpu::sinkhorn_overlap));
}
