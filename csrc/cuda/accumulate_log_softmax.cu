// accumulate_log_softmax_ in CUDA. Definition: selavi/ops/_definition.py.
#include <algorithm>
#include <optional>
#include <vector>

#include "accumulate_log_softmax.cuh"
#include "launcher.h"

namespace selavi::cuda {
namespace {

Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return Dtype::kDouble;
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    default:  // check_accumulate has seen the dtypes
      return Dtype::kFloat;
  }
}

template <typename Number, typename Stored>
void launch_long(Launcher& launcher, const Views& views, const Store<Stored>& store) {
  int cluster = 1;
  while (launcher.clusters() && cluster < kMaxCluster && store.columns > cluster * kLongColumns) {
    cluster *= 2;
  }
  const int64_t slice = ceil_div(store.columns, cluster);
  const size_t room = (launcher.largest_shared() - kLongShared<Number>) / sizeof(double);
  const int64_t held = std::min(slice, static_cast<int64_t>(room));
  Geometry geometry{blocks_of(store.heads * store.batch * cluster), kLongThreads};
  geometry.shared = static_cast<size_t>(held) * sizeof(double) + kLongShared<Number>;
  geometry.cluster = cluster;
  launcher.launch("accumulate_log_softmax_, long rows", geometry,
                  accumulate_long_kernel<Number, Stored>, views, store, slice, held);
}

// In float64 where a view is.
template <typename Number, typename Stored>
void launch(Launcher& launcher, const Views& views, const Store<Stored>& store) {
  constexpr int kThreads = kMostThreads<Number>;
  const int64_t pairs = store.heads * store.batch;
  if (store.columns > int64_t{kThreads} * kTeamColumns) {
    launch_long<Number>(launcher, views, store);
    return;
  }
  Geometry geometry{blocks_of(pairs), kThreads};
  const int size = team_size(store.columns, kThreads);
  geometry.threads = size == kWarp ? kRowThreads : size;
  geometry.grid = blocks_of(ceil_div(pairs, geometry.threads / size));
  geometry.shared = 2 * kThreads / kWarp * sizeof(Number);
  launcher.launch("accumulate_log_softmax_", geometry, accumulate_kernel<Number, Stored>, views,
                  store, size);
}

template <typename Stored>
void accumulate(const Tensor& store, const std::vector<Tensor>& logits, const Tensor& index,
                const std::optional<Tensor>& weight) {
  const Store<Stored> target = {static_cast<Stored*>(store.mutable_data_ptr()),
                                store.stride(0),
                                store.stride(1),
                                store.stride(2),
                                store.size(1),
                                store.size(2),
                                static_cast<const int64_t*>(index.const_data_ptr()),
                                store.size(0),
                                index.size(0)};
  Launcher launcher(store);
  for (size_t first = 0; first < logits.size(); first += kMaxViews) {
    Views views = {};
    views.count = static_cast<int>(std::min(logits.size() - first, size_t{kMaxViews}));
    views.every = 1.0 / static_cast<double>(logits.size());
    bool wide = false;
    for (int m = 0; m < views.count; ++m) {
      const size_t position = first + static_cast<size_t>(m);
      const Tensor& view = logits[position];
      const double* weights =
          weight.has_value() ? doubles(*weight) + position * index.size(0) : nullptr;
      views.view[m] = {view.const_data_ptr(), view.stride(0), view.stride(1),
                       view.stride(2),        weights,        dtype_of(view)};
      wide |= views.view[m].dtype == Dtype::kDouble;
    }
    if (wide) {
      launch<double>(launcher, views, target);
    } else {
      launch<float>(launcher, views, target);
    }
  }
}

void accumulate_log_softmax_(const Tensor& store, const std::vector<Tensor>& logits,
                             const Tensor& index, const std::optional<Tensor>& weight) {
  check_accumulate(store, logits, index, weight);
  if (store.size(0) * index.size(0) * store.size(2) == 0) return;
  if (store.scalar_type() == ScalarType::Double) {
    accumulate<double>(store, logits, index, weight);
  } else {
    accumulate<float>(store, logits, index, weight);
  }
}

}  // namespace
}  // namespace selavi::cuda

SELAVI_CUDA_LIBRARY(m) {
  m.impl("accumulate_log_softmax_", TORCH_BOX(&selavi::cuda::accumulate_log_softmax_));
}
