// What sinkhorn_pass takes, and the sums that its blocks leave: merged in a fixed order, so that
// results are the same in every run. Free of torch.
#pragma once

#include "geometry.h"

namespace selavi::cuda {

template <typename Storage>
struct PassArguments {
  Matrices<Storage> log_p;
  const double* v;             // (B, candidates, K)
  const double* row_marginal;  // (B, N)
  const double* lam;           // (B,)
  int candidates;
};

// A chunk is some rows of one problem.
template <typename Sum>
struct PassPartials {
  Sum* mass;      // (B, chunks, candidates, K)
  double* value;  // (B, chunks, candidates)
  int* rows;      // (B, chunks): with weight; where there are none, nothing else is set
  int64_t chunks;
  int chunk_rows;
};

constexpr int kMergeSlices = 8;  // of the chunks, each summed by one row of threads

// mass (B, candidates, K) and value (B, candidates) from the chunks' sums; NaN where v's
// first entry is NaN. A block of kWarp x kMergeSlices threads makes kWarp columns of one candidate;
// blocks: B * candidates * ceil(K / kWarp).
template <typename Storage, typename Sum>
__global__ void merge_kernel(PassArguments<Storage> arguments, PassPartials<Sum> partials,
                             double* mass, double* value) {
  const int64_t columns = arguments.log_p.columns;
  const int64_t tiles = (columns + kWarp - 1) / kWarp, tile = blockIdx.x % tiles;
  const int64_t row = blockIdx.x / tiles, b = row / arguments.candidates,
                s = row % arguments.candidates;
  const int lane = static_cast<int>(threadIdx.x) % kWarp,
            slice = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t k = tile * kWarp + lane;
  const int64_t length = (partials.chunks + kMergeSlices - 1) / kMergeSlices;
  const int64_t begin = slice * length, end = min(begin + length, partials.chunks);
  double column = 0.0, total = 0.0;
#pragma unroll 4
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t task = b * partials.chunks + chunk, at = task * arguments.candidates + s;
    if (partials.rows[task] == 0) continue;
    if (k < columns) column += partials.mass[at * columns + k];
    if (tile == 0 && lane == 0) total += partials.value[at];
  }
  auto* const sums = shared_memory<double>();  // (kMergeSlices, kWarp), then (kMergeSlices,)
  auto* const totals = sums + kMergeSlices * kWarp;
  sums[threadIdx.x] = column;
  if (lane == 0) totals[slice] = total;
  __syncthreads();
  if (slice != 0) return;
  column = total = 0.0;
  for (int j = 0; j < kMergeSlices; ++j) {
    column += sums[j * kWarp + lane];
    total += totals[j];
  }
  const double first = arguments.v[row * columns];
  if (first != first) column = total = first;
  if (k < columns) mass[row * columns + k] = column;
  if (tile == 0 && lane == 0) value[row] = total;
}

template <typename Launcher, typename Storage, typename Sum>
void launch_merge(Launcher& launcher, const PassArguments<Storage>& arguments,
                  const PassPartials<Sum>& partials, double* mass, double* value) {
  const int64_t blocks =
      arguments.log_p.problems * arguments.candidates * ceil_div(arguments.log_p.columns, kWarp);
  launcher.launch(
      "sinkhorn_pass (merge)",
      {blocks_of(blocks), kWarp * kMergeSlices, sizeof(double) * kMergeSlices * (kWarp + 1)},
      merge_kernel<Storage, Sum>, arguments, partials, mass, value);
}

}  // namespace selavi::cuda
