// Kernels of accumulate_log_softmax_: the views of a sample are added up in registers, or in shared
// memory where rows are long, so that each logit is read once and the store once read and written.
// Definition: selavi/ops/_definition.py.
#pragma once

#include "geometry.h"
#include "team.cuh"

namespace selavi::cuda {

constexpr int kMaxViews = 16;     // of one launch; each further launch goes over the store again
constexpr int kRowThreads = 128;  // a block of rows that a warp holds
// Of a block with one row; float64 needs twice the registers.
template <typename Number>
constexpr int kMostThreads = sizeof(Number) == sizeof(float) ? 1024 : 512;

enum class Dtype { kFloat, kDouble, kBFloat16, kFloat16 };

// logits (H, B, K) and their weights (B), or null for `every`. Strides in elements.
struct View {
  const void* logits;
  int64_t head_stride, sample_stride, column_stride;
  const double* weight;
  Dtype dtype;
};

struct Views {
  View view[kMaxViews];
  int count;
  double every;
};

// store (H, N, K), whose rows index (B) names.
template <typename Stored>
struct Store {
  Stored* data;
  int64_t head_stride, row_stride, column_stride;
  int64_t rows, columns;
  const int64_t* index;
  int64_t heads, batch;

  // The row of sample b. Nobody on the host may wait to look at the index, so it is done here.
  __device__ Stored* row(int64_t head, int64_t b) const {
    const int64_t i = index[b];
    if (i < 0 || i >= rows) __trap();
    return data + head * head_stride + i * row_stride;
  }
};

// Calls body(pointer to the row of sample b).
template <typename Number, typename Body>
__device__ void with_row(const View& view, int64_t head, int64_t b, Body body) {
  const int64_t offset = head * view.head_stride + b * view.sample_stride;
  switch (view.dtype) {
    case Dtype::kFloat:
      return body(static_cast<const float*>(view.logits) + offset);
    case Dtype::kBFloat16:
      return body(static_cast<const BFloat16*>(view.logits) + offset);
    case Dtype::kFloat16:
      return body(static_cast<const Float16*>(view.logits) + offset);
    case Dtype::kDouble:
      // Views of float64 make the whole launch compute in it.
      if constexpr (sizeof(Number) == sizeof(double)) {
        return body(static_cast<const double*>(view.logits) + offset);
      }
  }
}

template <typename Number>
__device__ Number weight_of(const Views& views, int m, int64_t b) {
  const double* weight = views.view[m].weight;
  return static_cast<Number>(weight != nullptr ? weight[b] : views.every);
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ double exponential(double x) { return exp(x); }
__device__ __forceinline__ float logarithm_of(float x) { return logf(x); }
__device__ __forceinline__ double logarithm_of(double x) { return log(x); }

// A row to a team, at most kTeamColumns columns to a thread.
template <typename Number, typename Stored>
__global__ void __launch_bounds__(kMostThreads<Number>)
    accumulate_kernel(const Views views, const Store<Stored> store, int size) {
  Number* scratch = shared_memory<Number>();
  const Team team(size);
  const int64_t pair = int64_t{blockIdx.x} * (blockDim.x / size) + team.index;
  if (pair >= store.heads * store.batch) return;  // a whole warp, or a whole block
  const int64_t head = pair / store.batch, b = pair % store.batch;
  const int columns = static_cast<int>(store.columns);
  Number total[kTeamColumns] = {};
  for (int m = 0; m < views.count; ++m) {
    const View& view = views.view[m];
    const Number weight = weight_of<Number>(views, m, b);
    if (weight == Number(0)) continue;
    Number x[kTeamColumns], top = static_cast<Number>(-INFINITY), sum = Number(0);
    with_row<Number>(view, head, b, [&](const auto* logits) {
#pragma unroll
      for (int e = 0; e < kTeamColumns; ++e) {
        const int k = e * size + team.rank;
        x[e] = k < columns ? static_cast<Number>(to_compute(logits[k * view.column_stride]))
                           : static_cast<Number>(-INFINITY);
      }
    });
#pragma unroll
    for (Number value : x) top = value > top ? value : top;
    team.max<1>(&top, scratch);
#pragma unroll
    for (int e = 0; e < kTeamColumns; ++e) {
      x[e] -= top;  // before the logarithm: so it is rounded at the result's size
      if (e * size < columns) sum += exponential(x[e]);
    }
    team.sum<1>(&sum, scratch + kMostThreads<Number> / kWarp);
    const Number logarithm = logarithm_of(sum);
#pragma unroll
    for (int e = 0; e < kTeamColumns; ++e) total[e] += weight * (x[e] - logarithm);
  }
  Stored* target = store.row(head, b);
#pragma unroll
  for (int e = 0; e < kTeamColumns; ++e) {
    const int k = e * size + team.rank;
    if (k >= columns) break;
    Stored& element = target[k * store.column_stride];
    element = static_cast<Stored>(static_cast<double>(element) + total[e]);
  }
}

// A row's sum of exponentials, or a part of it: sum e^top.
template <typename Number>
struct ExponentialSum {
  Number top = static_cast<Number>(-INFINITY), sum = Number(0);

  // To a top that is not below; both may be -inf.
  __device__ void rise(Number to) {
    if (to > top) sum *= exponential(top - to);
    top = to;
  }
  __device__ double logsumexp() const { return top + log(static_cast<double>(sum)); }
};

constexpr int kLongThreads = 512;
constexpr int kLongEach = 8;                // columns of a thread that are on their way
constexpr int64_t kLongColumns = 12 << 10;  // of a block where a cluster can be larger: two blocks
                                            // fit a multiprocessor's shared memory

// Shared memory beside the columns' sums: parts (kMaxViews, kMaxCluster), and what Team needs.
template <typename Number>
constexpr size_t kLongShared = kMaxViews * kMaxCluster * sizeof(ExponentialSum<Number>) +
                               2 * kLongThreads / kWarp * sizeof(Number);

// Adds weight * logits to the first `held` of sums, and returns this thread's part of the row.
template <typename Number, typename Storage>
__device__ ExponentialSum<Number> add_logits(const Storage* logits, int64_t stride, int64_t columns,
                                             double weight, double* sums, int64_t held) {
  ExponentialSum<Number> part;
  for (int64_t first = threadIdx.x; first < columns; first += kLongThreads * kLongEach) {
    Number x[kLongEach], top = part.top;
#pragma unroll
    for (int e = 0; e < kLongEach; ++e) {
      const int64_t k = first + e * kLongThreads;
      x[e] = k < columns ? static_cast<Number>(to_compute(load_streaming(logits + k * stride)))
                         : static_cast<Number>(-INFINITY);
    }
#pragma unroll
    for (Number value : x) top = value > top ? value : top;
    part.rise(top);
    const Number shift = top > static_cast<Number>(-INFINITY) ? top : Number(0);
#pragma unroll
    for (int e = 0; e < kLongEach; ++e) {
      const int64_t k = first + e * kLongThreads;
      part.sum += exponential(x[e] - shift);
      if (k < held) sums[k] += weight * x[e];
    }
  }
  return part;
}

// sum_m weight_m x_m of one column, read again.
template <typename Number>
__device__ double weighted_logits(const Views& views, int64_t head, int64_t b, int64_t k) {
  double total = 0.0;
  for (int m = 0; m < views.count; ++m) {
    const double weight = weight_of<double>(views, m, b);
    if (weight == 0.0) continue;
    with_row<Number>(views.view[m], head, b, [&](const auto* logits) {
      total += weight * to_compute(logits[k * views.view[m].column_stride]);
    });
  }
  return total;
}

// sum_m weight_m logsumexp_m of a row, from its blocks' parts.
template <typename Number>
__device__ double weighted_logsumexps(const Views& views, int64_t b,
                                      const ExponentialSum<Number>* parts, int blocks) {
  double total = 0.0;
  for (int m = 0; m < views.count; ++m) {
    const double weight = weight_of<double>(views, m, b);
    if (weight == 0.0) continue;
    ExponentialSum<Number> row;
    for (int block = 0; block < blocks; ++block) {
      ExponentialSum<Number> part = parts[m * kMaxCluster + block];
      const Number top = part.top > row.top ? part.top : row.top;
      row.rise(top);
      part.rise(top);
      row.sum += part.sum;
    }
    total += weight * row.logsumexp();
  }
  return total;
}

// A row of any length to a block, or to a cluster whose blocks have a `slice` each. The store gains
//   sum_m weight_m x_mk - sum_m weight_m logsumexp_m,
// whose first term is summed in shared memory, in double because logits may be large, while each
// logit is read once: for the first `held` columns of a block; the others' are read twice.
template <typename Number, typename Stored>
__global__ void __launch_bounds__(kLongThreads)
    accumulate_long_kernel(const Views views, const Store<Stored> store, int64_t slice,
                           int64_t held) {
  using Part = ExponentialSum<Number>;
  auto* sums = shared_memory<double>();
  auto* parts = reinterpret_cast<Part*>(sums + held);
  auto* scratch = reinterpret_cast<Number*>(parts + kMaxViews * kMaxCluster);
  const int cluster = cluster_blocks(), rank = cluster_rank();
  const Team team(kLongThreads);
  const int64_t pair = blockIdx.x / static_cast<unsigned>(cluster);
  const int64_t head = pair / store.batch, b = pair % store.batch;
  const int64_t begin = rank * slice, columns = min(store.columns - begin, slice);
  for (int64_t k = team.rank; k < held; k += kLongThreads) sums[k] = 0.0;
  cluster_sync();  // all blocks of the cluster have begun
  for (int m = 0; m < views.count; ++m) {
    const double weight = weight_of<double>(views, m, b);
    if (weight == 0.0) continue;
    Part part;
    with_row<Number>(views.view[m], head, b, [&](const auto* logits) {
      const int64_t stride = views.view[m].column_stride;
      part = add_logits<Number>(logits + begin * stride, stride, columns, weight, sums, held);
    });
    Number top = part.top;
    team.max<1>(&top, scratch);
    part.rise(top);
    team.sum<1>(&part.sum, scratch + kLongThreads / kWarp);
    if (team.rank < cluster) in_cluster_block(parts, team.rank)[m * kMaxCluster + rank] = part;
  }
  cluster_sync();
  const double logsumexps = weighted_logsumexps(views, b, parts, cluster);
  Stored* target = store.row(head, b) + begin * store.column_stride;
  for (int64_t first = team.rank; first < columns; first += kLongThreads * kLongEach) {
    Stored before[kLongEach];
#pragma unroll
    for (int e = 0; e < kLongEach; ++e) {
      const int64_t k = first + e * kLongThreads;
      if (k < columns) before[e] = target[k * store.column_stride];
    }
#pragma unroll
    for (int e = 0; e < kLongEach; ++e) {
      const int64_t k = first + e * kLongThreads;
      if (k >= columns) break;
      const double total = k < held ? sums[k] : weighted_logits<Number>(views, head, b, begin + k);
      target[k * store.column_stride] =
          static_cast<Stored>(static_cast<double>(before[e]) + (total - logsumexps));
    }
  }
}

}  // namespace selavi::cuda
