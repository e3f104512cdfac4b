// sinkhorn_column_logsumexp in one read: a thread has one column of some rows and goes down them
// with a running maximum. Free of torch.
#pragma once

#include "column_tile.cuh"
#include "geometry.h"
#include "row_softmax.cuh"

namespace selavi::cuda {

constexpr int kColumnBatch = 8;  // rows in flight; also a sector of memory where rows are adjacent

// exp(shift) * sum; nothing yet where shift is -inf.
struct RunningSum {
  double shift, sum;

  template <typename Storage>
  __device__ void rise(double top) {
    if (!(top > shift)) return;
    sum = shift > -infinity() ? sum * exponential<Storage>(shift - top) : 0.0;
    shift = top;
  }
  __device__ double finite_shift() const { return shift > -infinity() ? shift : 0.0; }
};

// NaN in `other` is kept.
__device__ __forceinline__ void merge(RunningSum* into, const RunningSum& other) {
  into->rise<double>(other.shift);
  into->sum += other.sum * exp(other.shift - into->finite_shift());
  if (!(other.sum == other.sum)) into->sum = other.sum;
}

// partial (B, chunks, K). Blocks: those of ColumnTile.
template <typename Storage>
__global__ void __launch_bounds__(kTileThreads)
    column_logsumexp_kernel(Matrices<Storage> log_p, const double* all_u, const double* all_lam,
                            int64_t chunks, RunningSum* partial) {
  const ColumnTile tile(log_p.rows, log_p.columns, chunks);
  const double lam = all_lam[tile.b];
  const double* const u = all_u + tile.b * log_p.rows;
  const Storage* const column =
      log_p.data + tile.b * log_p.problem_stride + tile.k * log_p.column_stride;
  RunningSum running = {-infinity(), 0.0};
  for (int64_t i = tile.first; tile.k < log_p.columns && i < tile.last; i += kColumnBatch) {
    double x[kColumnBatch], top = -infinity();
#pragma unroll
    for (int j = 0; j < kColumnBatch; ++j) {
      const double shift = i + j < tile.last ? u[i + j] : -infinity();
      x[j] = shift;  // a row of u = -inf may hold anything
      if (shift != -infinity()) {
        x[j] = lam * to_double(load(column + (i + j) * log_p.row_stride)) + shift;
      }
    }
#pragma unroll
    for (int j = 0; j < kColumnBatch; ++j) top = fmax(top, x[j]);
    running.rise<Storage>(top);
    const double shift = running.finite_shift();
#pragma unroll
    for (int j = 0; j < kColumnBatch; ++j) running.sum += exponential<Storage>(x[j] - shift);
  }
  auto* const shared = shared_memory<RunningSum>();
  shared[threadIdx.x] = running;
  __syncthreads();
  if (tile.group != 0 || tile.k >= log_p.columns) return;
  for (int group = 1; group < kTileGroups; ++group) {
    merge(&running, shared[group * kWarp + tile.lane]);
  }
  partial[(tile.b * chunks + tile.chunk) * log_p.columns + tile.k] = running;
}

// out (B, K) from partial (B, chunks, K). A block: kWarp columns, kTileGroups shares of the chunks.
template <typename Storage>
__global__ void __launch_bounds__(kTileThreads)
    merge_columns_kernel(Matrices<Storage> log_p, int64_t chunks, const RunningSum* partial,
                         double* out) {
  const ColumnTile tile(chunks, log_p.columns, 1);
  RunningSum running = {-infinity(), 0.0};
  for (int64_t j = tile.first; tile.k < log_p.columns && j < tile.last; ++j) {
    merge(&running, partial[(tile.b * chunks + j) * log_p.columns + tile.k]);
  }
  auto* const shared = shared_memory<RunningSum>();
  shared[threadIdx.x] = running;
  __syncthreads();
  if (tile.group != 0 || tile.k >= log_p.columns) return;
  for (int group = 1; group < kTileGroups; ++group) {
    merge(&running, shared[group * kWarp + tile.lane]);
  }
  out[tile.b * log_p.columns + tile.k] = running.finite_shift() + log(running.sum);
}

}  // namespace selavi::cuda
