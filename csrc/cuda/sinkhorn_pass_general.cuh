// sinkhorn_pass for any dtype and any number of columns, in two reads: rows' logsumexps, then the
// columns' sums, which a second read makes of them. float64 log_p, and rows too wide for the blocks
// that can share one (sinkhorn_pass.cuh says how wide). Free of torch.
#pragma once

#include "column_tile.cuh"
#include "pass_partials.cuh"
#include "row_softmax.cuh"

namespace selavi::cuda {

constexpr int kGeneralThreads = 256;
constexpr int64_t kGeneralRows = 512;  // of a chunk

// logsumexp (B, candidates, N) of the rows with weight. A block takes kGeneralThreads / (kWarps *
// kWarp) rows of one problem.
template <typename Storage, int kWarps>
__global__ void __launch_bounds__(kGeneralThreads)
    row_logsumexp_kernel(PassArguments<Storage> arguments, double* logsumexp) {
  constexpr int kTeam = kWarps * kWarp, kTeams = kGeneralThreads / kTeam;
  const Matrices<Storage>& log_p = arguments.log_p;
  const int team = static_cast<int>(threadIdx.x) / kTeam;
  const int64_t blocks = (log_p.rows + kTeams - 1) / kTeams, b = blockIdx.x / blocks;
  const int64_t i = blockIdx.x % blocks * kTeams + team;
  // The same for the whole team.
  if (i >= log_p.rows || arguments.row_marginal[b * log_p.rows + i] == 0.0) return;
  for (int s = 0; s < arguments.candidates; ++s) {
    const double* v = arguments.v + (b * arguments.candidates + s) * log_p.columns;
    if (v[0] != v[0]) continue;
    const RowTop row = row_top<kWarps>(log_p.data + b * log_p.problem_stride + i * log_p.row_stride,
                                       log_p.column_stride, log_p.columns, v, arguments.lam[b]);
    if (threadIdx.x % kTeam == 0) {
      logsumexp[(b * arguments.candidates + s) * log_p.rows + i] = row.logsumexp();
    }
  }
}

// Sums over chunks of rows. Blocks: those of ColumnTile.
template <typename Storage>
__global__ void __launch_bounds__(kTileThreads)
    column_sums_kernel(PassArguments<Storage> arguments, const double* logsumexp,
                       PassPartials<double> partials) {
  const Matrices<Storage>& log_p = arguments.log_p;
  const ColumnTile tile(log_p.rows, log_p.columns, partials.chunks);
  const bool is_column = tile.k < log_p.columns;
  const double lam = arguments.lam[tile.b];
  const double* const weight = arguments.row_marginal + tile.b * log_p.rows;
  const Storage* const column =
      log_p.data + tile.b * log_p.problem_stride + tile.k * log_p.column_stride;
  auto* const sums = shared_memory<double>();  // of the groups: masses, values
  auto* const values = sums + kTileThreads;
  const int64_t task = tile.b * partials.chunks + tile.chunk;
  for (int s = 0; s < arguments.candidates; ++s) {
    const double* const v = arguments.v + (tile.b * arguments.candidates + s) * log_p.columns;
    const double* const z = logsumexp + (tile.b * arguments.candidates + s) * log_p.rows;
    const double v_k = is_column ? v[tile.k] : 0.0;
    double mass = 0.0, value = 0.0;
    if (v[0] == v[0]) {
      for (int64_t i = tile.first; i < tile.last; ++i) {
        const double c = weight[i];
        if (c == 0.0) continue;
        value += c * z[i];
        if (is_column) {
          const double p = to_double(load(column + i * log_p.row_stride));
          mass += c * exponential<Storage>(scaled(lam, p, v_k) - z[i]);
        }
      }
    }
    __syncthreads();  // what was there has been read
    sums[threadIdx.x] = mass;
    if (tile.lane == 0) values[tile.group] = value;
    __syncthreads();
    if (tile.group != 0) continue;
    for (int group = 1; group < kTileGroups; ++group) {
      mass += sums[group * kWarp + tile.lane];
      value += values[group];
    }
    const int64_t at = task * arguments.candidates + s;
    if (is_column) partials.mass[at * log_p.columns + tile.k] = mass;
    if (tile.k == 0) partials.value[at] = value;
  }
  if (tile.k == 0 && tile.group == 0) partials.rows[task] = 1;
}

template <typename Launcher, typename Storage>
void pass_in_two_reads(Launcher& launcher, const PassArguments<Storage>& arguments, double* mass,
                       double* value) {
  const Matrices<Storage>& log_p = arguments.log_p;
  const int64_t pairs = log_p.problems * arguments.candidates;
  auto* const logsumexp = launcher.template allocate<double>(pairs * log_p.rows);
  PassPartials<double> partials;
  partials.chunks = ceil_div(log_p.rows, kGeneralRows);
  partials.mass = launcher.template allocate<double>(pairs * partials.chunks * log_p.columns);
  partials.value = launcher.template allocate<double>(pairs * partials.chunks);
  partials.rows = launcher.template allocate<int>(log_p.problems * partials.chunks);
  const auto rows = [&](int64_t a_block) {
    return blocks_of(log_p.problems * ceil_div(log_p.rows, a_block));
  };
  if (log_p.columns <= kNarrowRow) {
    launcher.launch("sinkhorn_pass (rows)", {rows(kGeneralThreads / kWarp), kGeneralThreads},
                    row_logsumexp_kernel<Storage, 1>, arguments, logsumexp);
  } else {
    launcher.launch("sinkhorn_pass (rows)",
                    {rows(1), kGeneralThreads, row_shared_bytes<kGeneralThreads / kWarp>()},
                    row_logsumexp_kernel<Storage, kGeneralThreads / kWarp>, arguments, logsumexp);
  }
  launcher.launch("sinkhorn_pass (columns)",
                  {blocks_of(tile_blocks(log_p.problems, log_p.columns, partials.chunks)),
                   kTileThreads, sizeof(double) * (kTileThreads + kTileGroups)},
                  column_sums_kernel<Storage>, arguments, logsumexp, partials);
  launch_merge(launcher, arguments, partials, mass, value);
}

}  // namespace selavi::cuda
