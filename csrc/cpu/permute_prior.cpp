// permute_prior on the CPU. Definition: selavi/ops/_definition.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <functional>
#include <numeric>
#include <vector>

#include "../tensors.h"

namespace selavi::cpu {
namespace {

Tensor permute_prior(const Tensor& prior, const Tensor& mass) {
  check_prior(prior, mass);
  const int64_t problems = mass.size(0), columns = mass.size(1);
  Tensor permuted = torch::stable::new_empty(mass, {problems, columns});
  const auto* prior_data = static_cast<const double*>(prior.const_data_ptr());
  const auto* mass_data = static_cast<const double*>(mass.const_data_ptr());
  auto* permuted_data = static_cast<double*>(permuted.mutable_data_ptr());
  std::vector<int64_t> heaviest(static_cast<size_t>(columns));
  std::vector<double> largest(static_cast<size_t>(columns));
  for (int64_t b = 0; b < problems; ++b) {
    const double* row = mass_data + b * columns;
    std::iota(heaviest.begin(), heaviest.end(), int64_t{0});
    std::stable_sort(heaviest.begin(), heaviest.end(),
                     [row](int64_t left, int64_t right) { return row[left] > row[right]; });
    std::copy_n(prior_data + b * columns, columns, largest.begin());
    std::sort(largest.begin(), largest.end(), std::greater<>());
    for (size_t rank = 0; rank < heaviest.size(); ++rank) {
      permuted_data[b * columns + heaviest[rank]] = largest[rank];
    }
  }
  return permuted;
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("permute_prior", TORCH_BOX(&selavi::cpu::permute_prior));
}
