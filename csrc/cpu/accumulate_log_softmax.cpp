// accumulate_log_softmax_ on the CPU. Definition: selavi/ops/_definition.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "../include/potential.h"
#include "../tensors.h"
#include "matrix_of.h"
#include "row_kernels.h"

namespace selavi::cpu {
namespace {

constexpr int64_t kMinRows = 16;  // (head, sample) pairs below which a thread is not worth starting

void check_index(const Tensor& index, int64_t rows) {
  const auto* positions = static_cast<const int64_t*>(index.const_data_ptr());
  for (int64_t b = 0; b < index.size(0); ++b) {
    STD_TORCH_CHECK(positions[b] >= 0 && positions[b] < rows, "index[", b, "] = ", positions[b],
                    " is outside the store's ", rows, " rows");
  }
}

// Adds weight_b * log_softmax(logits[h, b, :]) to sums[pair, :] for the pairs h * B + b in
// [first, last).
template <typename Storage>
void add_view(const Tensor& logits, const double* weight, double default_weight, int64_t first,
              int64_t last, double* sums) {
  const int64_t batch = logits.size(1), columns = logits.size(2);
  const std::vector<double> zeros(static_cast<size_t>(columns), 0.0);
  PotentialParts<Compute<Storage>> parts(zeros.data(), 1.0, columns);
  Scratch<Compute<Storage>> scratch((kTile + 1) * padded(columns));
  for (int64_t h = first / batch; h * batch < last; ++h) {
    const int64_t begin = std::max(first - h * batch, int64_t{0});
    const int64_t end = std::min(last - h * batch, batch);
    row_kernels<Storage>().add_log_softmax({matrix_of<Storage>(logits, h), begin, end},
                                           parts.view(), weight, default_weight, scratch.data(),
                                           sums + (h * batch + begin - first) * columns);
  }
}

template <typename T>
void add_to_store(const Tensor& store, const int64_t* index, int64_t batch, int64_t first,
                  int64_t last, const double* sums) {
  auto* data = static_cast<T*>(store.mutable_data_ptr());
  const int64_t columns = store.size(2), column_stride = store.stride(2);
  for (int64_t pair = first; pair < last; ++pair) {
    T* target = data + (pair / batch) * store.stride(0) + index[pair % batch] * store.stride(1);
    const double* source = sums + (pair - first) * columns;
    for (int64_t k = 0; k < columns; ++k) {
      target[k * column_stride] = static_cast<T>(target[k * column_stride] + source[k]);
    }
  }
}

void accumulate_log_softmax_(const Tensor& store, const std::vector<Tensor>& logits,
                             const Tensor& index, const std::optional<Tensor>& weight) {
  check_accumulate(store, logits, index, weight);
  check_index(index, store.size(1));
  const int64_t heads = store.size(0), batch = index.size(0), columns = store.size(2);
  const auto* positions = static_cast<const int64_t*>(index.const_data_ptr());
  const double* weights =
      weight.has_value() ? static_cast<const double*>(weight->const_data_ptr()) : nullptr;
  const double default_weight = 1.0 / static_cast<double>(logits.size());
  torch::stable::parallel_for(0, heads * batch, kMinRows, [&](int64_t first, int64_t last) {
    std::vector<double> sums(static_cast<size_t>((last - first) * columns), 0.0);
    for (size_t m = 0; m < logits.size(); ++m) {
      const double* view_weight =
          weights != nullptr ? weights + static_cast<int64_t>(m) * batch : nullptr;
      dispatch_floating(logits[m], "logits", [&](auto tag) {
        using Storage = typename decltype(tag)::type;
        add_view<Storage>(logits[m], view_weight, default_weight, first, last, sums.data());
      });
    }
    if (store.scalar_type() == ScalarType::Double) {
      add_to_store<double>(store, positions, batch, first, last, sums.data());
    } else {
      add_to_store<float>(store, positions, batch, first, last, sums.data());
    }
  });
}

}  // namespace
}  // namespace selavi::cpu

STABLE_TORCH_LIBRARY_IMPL(selavi, CPU, m) {
  m.impl("accumulate_log_softmax_", TORCH_BOX(&selavi::cpu::accumulate_log_softmax_));
}
