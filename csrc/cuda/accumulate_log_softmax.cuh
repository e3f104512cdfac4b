// Kernels of accumulate_log_softmax_: the views of a sample are added up in registers, so that each
// logit is read once and the store once read and written. Definition: selavi/ops/_definition.py.
#pragma once

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

// A row of any length to a block. Each view is read three times, the second and third time from the
// cache.
template <typename Number, typename Stored>
__global__ void __launch_bounds__(kMostThreads<Number>)
    accumulate_long_kernel(const Views views, const Store<Stored> store) {
  constexpr int kThreads = kMostThreads<Number>;
  Number* scratch = shared_memory<Number>();
  Number* tops = scratch + 2 * kThreads / kWarp;
  Number* logarithms = tops + kMaxViews;
  const Team team(kThreads);
  const int64_t head = blockIdx.x / store.batch, b = blockIdx.x % store.batch;
  for (int m = 0; m < views.count; ++m) {
    const View& view = views.view[m];
    if (weight_of<Number>(views, m, b) == Number(0)) continue;
    with_row<Number>(view, head, b, [&](const auto* logits) {
      Number top = static_cast<Number>(-INFINITY), sum = Number(0);
#pragma unroll 1
      for (int64_t k = team.rank; k < store.columns; k += kThreads) {
        const auto value = static_cast<Number>(to_compute(logits[k * view.column_stride]));
        top = value > top ? value : top;
      }
      team.max<1>(&top, scratch);
#pragma unroll 1
      for (int64_t k = team.rank; k < store.columns; k += kThreads) {
        sum += exponential(static_cast<Number>(to_compute(logits[k * view.column_stride])) - top);
      }
      team.sum<1>(&sum, scratch + kMostThreads<Number> / kWarp);
      const Number logarithm = logarithm_of(sum);
      if (team.rank == 0) {
        tops[m] = top;
        logarithms[m] = logarithm;
      }
    });
  }
  __syncthreads();
  Stored* target = store.row(head, b);
  for (int64_t k = team.rank; k < store.columns; k += kThreads) {
    Number total = Number(0);
    for (int m = 0; m < views.count; ++m) {
      const Number weight = weight_of<Number>(views, m, b);
      if (weight == Number(0)) continue;
      with_row<Number>(views.view[m], head, b, [&](const auto* logits) {
        const auto value = static_cast<Number>(to_compute(logits[k * views.view[m].column_stride]));
        total += weight * ((value - tops[m]) - logarithms[m]);
      });
    }
    Stored& element = target[k * store.column_stride];
    element = static_cast<Stored>(static_cast<double>(element) + total);
  }
}

}  // namespace selavi::cuda
