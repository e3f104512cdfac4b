// sinkhorn_labels and sinkhorn_plan: what is made of one row at a time. A row is read from memory
// once; it is read again from the caches. Free of torch.
#pragma once

#include "geometry.h"
#include "row_softmax.cuh"

namespace selavi::cuda {

constexpr int kRowThreads = 256;
constexpr int kWideWarps = kRowThreads / kWarp;  // that share a row of more than kNarrowRow columns

// The row of a team: blocks of kRowThreads threads take the rows of one problem after another's.
struct TeamRow {
  int64_t b, i;
  bool first;  // whether this thread is the team's first
};

template <int kWarps>
__device__ __forceinline__ TeamRow team_row(int64_t rows) {
  constexpr int kTeam = kWarps * kWarp, kTeams = kRowThreads / kTeam;
  const int64_t blocks = (rows + kTeams - 1) / kTeams;
  const int thread = static_cast<int>(threadIdx.x);
  return {blockIdx.x / blocks, blockIdx.x % blocks * kTeams + thread / kTeam, thread % kTeam == 0};
}

template <typename Storage, int kWarps>
__global__ void __launch_bounds__(kRowThreads)
    labels_kernel(Matrices<Storage> log_p, const double* v, const double* lam, int64_t* label,
                  double* logsumexp, double* confidence) {
  const TeamRow at = team_row<kWarps>(log_p.rows);
  if (at.i >= log_p.rows) return;
  const RowTop row =
      row_top<kWarps>(log_p.data + at.b * log_p.problem_stride + at.i * log_p.row_stride,
                      log_p.column_stride, log_p.columns, v + at.b * log_p.columns, lam[at.b]);
  if (!at.first) return;
  const int64_t out = at.b * log_p.rows + at.i;
  label[out] = row.k < log_p.columns ? row.k : 0;  // none is above -inf
  logsumexp[out] = row.logsumexp();
  confidence[out] = row.largest_share();
}

template <typename Storage, typename Output, int kWarps>
__global__ void __launch_bounds__(kRowThreads)
    plan_kernel(Matrices<Storage> log_p, const double* v, const double* row_marginal,
                const double* all_lam, Output* plan) {
  const TeamRow at = team_row<kWarps>(log_p.rows);
  if (at.i >= log_p.rows) return;
  const int64_t columns = log_p.columns, i = at.b * log_p.rows + at.i;
  const int member = static_cast<int>(threadIdx.x) % (kWarps * kWarp);
  const double weight = row_marginal[i], lam = all_lam[at.b];
  const Storage* const row = log_p.data + at.b * log_p.problem_stride + at.i * log_p.row_stride;
  const double* const problem_v = v + at.b * columns;
  Output* const out = plan + i * columns;
  if (weight == 0.0) {  // the row may hold anything
    for (int64_t k = member; k < columns; k += kWarps * kWarp) round_to(0.0, out + k);
    return;
  }
  const RowTop top = row_top<kWarps>(row, log_p.column_stride, columns, problem_v, lam);
  const double factor = weight / top.sum;
  constexpr int kUnroll = unroll_of<Storage>();
#pragma unroll kUnroll
  for (int64_t k = member; k < columns; k += kWarps * kWarp) {
    const double p = to_double(load(row + k * log_p.column_stride));
    round_to(factor * exponential<Storage>(scaled(lam, p, problem_v[k]) - top.top), out + k);
  }
}

// Launches narrow(...) or wide(...), a warp or a block a row.
template <typename Launcher, typename Storage, typename... Parameters, typename... Arguments>
void launch_rows(Launcher& launcher, const char* name, const Matrices<Storage>& log_p,
                 void (*narrow)(Matrices<Storage>, Parameters...),
                 void (*wide)(Matrices<Storage>, Parameters...), const Arguments&... arguments) {
  const bool is_wide = log_p.columns > kNarrowRow;
  const int64_t blocks = log_p.problems * ceil_div(log_p.rows, is_wide ? 1 : kWideWarps);
  const size_t shared = is_wide ? row_shared_bytes<kWideWarps>() : 0;
  launcher.launch(name, {blocks_of(blocks), kRowThreads, shared}, is_wide ? wide : narrow, log_p,
                  arguments...);
}

}  // namespace selavi::cuda
