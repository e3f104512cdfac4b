// sinkhorn_pass for 16-bit and float log_p in one read: a team of threads shares a row. Each thread
// keeps fixed columns: their sums over all its rows stay in registers. Free of torch.
#pragma once

#include <algorithm>

#include "pass_partials.cuh"
#include "potential.cuh"

namespace selavi::cuda {

// A team is kLanes lanes of one warp, or kWarps warps; where kColumns is kWideColumns or more it is
// a block, of which those in a cluster share a row. A thread keeps kColumns columns, of which kSure
// exist in every thread, and works on kRows rows at a time while the next ones arrive.
constexpr int kWideColumns = 32;

template <int kLanes_, int kWarps_, int kColumns_, int kSure_, int kCandidates_, int kRows_>
struct Shape {
  static constexpr int kLanes = kLanes_, kWarps = kWarps_, kColumns = kColumns_, kSure = kSure_;
  static constexpr int kCandidates = kCandidates_, kRows = kRows_;
  static constexpr int kBlockWarps = kWarps > 4 ? kWarps : 4;
  static constexpr int kThreads = kBlockWarps * kWarp;
  static constexpr int kTeam =
      kLanes * kWarps;  // threads; also how far apart a thread's columns are
  static constexpr int kTeams = kThreads / kTeam;
  static constexpr int kWidth = kTeam * kColumns;  // columns of a block
  static constexpr bool kWide = kColumns >= kWideColumns;
  static constexpr int kMaxCluster = kWide ? 8 : 1;
  static constexpr int kSummed = kLanes < kWarp ? 64 : 128;  // rows that a thread sums in float
  static constexpr int kMaxRows = kTeams * kSummed;
  static constexpr bool kHoldsPotential =
      kCandidates == 1 && kColumns <= 8 && kRows * kColumns <= 24;
  static constexpr bool kHoldsSums = !kWide;  // in registers; else in shared memory
  // About what a thread needs: rows now and next, sums, potentials, all else.
  static constexpr int kRegisters =
      (2 * kRows + (kHoldsSums ? kCandidates : 0) + (kHoldsPotential ? 2 : 0)) * kColumns +
      5 * kCandidates + 66;
  static constexpr int kMinBlocks = std::max(1, 65536 / (kThreads * kRegisters));
};

struct Part {  // of a row's sum: sum * 2^shift
  double shift;
  float sum;
};

// Where things are in shared memory, in bytes.
template <typename S>
struct PassLayout {
  size_t exchange, weight, potential, sums, merge, value, row, far, count, bytes;

  __host__ __device__ explicit PassLayout(int rows) {
    size_t end = 0;
    exchange =
        take(&end, S::kWarps == 1 ? 0 : 2 * S::kRows * S::kTeams * S::kWarps * S::kMaxCluster,
             sizeof(Part));
    weight = take(&end, rows, sizeof(float2));
    potential = take(&end, S::kHoldsPotential ? 0 : S::kCandidates * S::kWidth, sizeof(float2));
    sums = take(&end, S::kHoldsSums ? 0 : S::kCandidates * S::kWidth, sizeof(float));
    merge = take(&end, S::kTeams == 1 ? 0 : S::kTeams * S::kWidth, sizeof(float));
    value = take(&end, S::kBlockWarps, sizeof(double));
    row = take(&end, rows, sizeof(uint16_t));
    far = take(&end, rows / S::kRows, sizeof(uint16_t));
    count = take(&end, S::kBlockWarps, sizeof(int));
    bytes = end;
  }

  __host__ __device__ static size_t take(size_t* end, int count, size_t size) {
    const size_t begin = *end;
    *end = (begin + static_cast<size_t>(count) * size + 15) / 16 * 16;
    return begin;
  }
};

// The chunk's rows with weight and their weights, as two floats each. Returns how many.
template <typename S>
__device__ int gather_rows(const double* weights, int rows, float2* weight, uint16_t* row,
                           int* counts) {
  constexpr int kEach = (S::kMaxRows + S::kThreads - 1) / S::kThreads;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  double mine[kEach];
  unsigned ballots[kEach];
  int total = 0;
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    const int i = j * S::kThreads + thread;
    mine[j] = i < rows ? load(weights + i) : 0.0;
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    ballots[j] = __ballot_sync(kAllLanes, mine[j] != 0.0);
    total += __popc(ballots[j]);
  }
  if (lane == 0) counts[warp] = total;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < S::kBlockWarps; ++w) {
    if (w == warp) before = total;
    total += counts[w];
  }
#pragma unroll
  for (int j = 0; j < kEach; ++j) {
    if (mine[j] != 0.0) {
      const int at = before + __popc(ballots[j] & ((1u << lane) - 1));
      const float high = static_cast<float>(mine[j]);
      weight[at] = make_float2(high, static_cast<float>(mine[j] - high));
      row[at] = static_cast<uint16_t>(j * S::kThreads + thread);
    }
    before += __popc(ballots[j]);
  }
  __syncthreads();
  return total;
}

// Sums a row's parts over the warps of its team. One barrier: `exchange` alternates between two.
template <typename S>
__device__ __forceinline__ void team_sums(Part* exchange, int cluster, int rank, int team, int warp,
                                          int lane, const Part (&part)[S::kRows],
                                          Part (&whole)[S::kRows]) {
  const int parts = S::kWide ? cluster * S::kWarps : S::kWarps;
  Part* const own = exchange + team * S::kRows * S::kWarps;
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    if (S::kWide) {
      if (lane < cluster) {
        in_cluster_block(own, lane)[r * parts + rank * S::kWarps + warp] = part[r];
      }
    } else if (lane == 0) {
      own[r * parts + warp] = part[r];
    }
  }
  if (S::kWide) {
    cluster_sync();
  } else if (S::kTeams > 1) {
    named_sync(1 + team, S::kTeam);
  } else {
    __syncthreads();
  }
  constexpr int kGroup = S::kWide ? kWarp : S::kWarps;  // lanes that together read all parts
#pragma unroll
  for (int r = 0; r < S::kRows; ++r) {
    double shift = -infinity();
    for (int j = lane % kGroup; j < parts; j += kGroup)
      shift = fmax(shift, own[r * parts + j].shift);
    shift = lanes_max<kGroup>(shift);
    float sum = 0.0f;
    for (int j = lane % kGroup; j < parts; j += kGroup) {
      const Part other = own[r * parts + j];
      sum += other.sum * exp2_fast(static_cast<float>(other.shift - shift));
    }
    whole[r] = {shift, lanes_sum<kGroup>(sum)};
  }
}

template <typename Storage, typename S>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    pass_kernel(PassArguments<Storage> arguments, PassPartials<float> partials) {
  constexpr int kRows = S::kRows, kColumns = S::kColumns, kCandidates = S::kCandidates;
  const double kFar = infinity();
  const Matrices<Storage>& log_p = arguments.log_p;
  const int cluster = S::kWide ? cluster_blocks() : 1, rank = S::kWide ? cluster_rank() : 0;
  const int64_t task = blockIdx.x / static_cast<unsigned>(cluster);
  const int64_t b = task / partials.chunks;
  const int64_t first_row = task % partials.chunks * partials.chunk_rows;
  const int64_t rows_left = log_p.rows - first_row;
  const int rows =
      rows_left < partials.chunk_rows ? static_cast<int>(rows_left) : partials.chunk_rows;

  auto* const shared = shared_memory<unsigned char>();
  const PassLayout<S> layout(partials.chunk_rows);
  auto* const exchange = reinterpret_cast<Part*>(shared + layout.exchange);
  auto* const weights = reinterpret_cast<float2*>(shared + layout.weight);
  auto* const potentials = reinterpret_cast<float2*>(shared + layout.potential);
  auto* const row_list = reinterpret_cast<uint16_t*>(shared + layout.row);

  const int count =
      gather_rows<S>(arguments.row_marginal + b * log_p.rows + first_row, rows, weights, row_list,
                     reinterpret_cast<int*>(shared + layout.count));
  if (threadIdx.x == 0 && rank == 0) partials.rows[task] = count;
  if (count == 0) return;

  const int thread = static_cast<int>(threadIdx.x);
  const int team = thread / S::kTeam, member = thread % S::kTeam, lane = thread % kWarp;
  const int warp = member / kWarp, team_lane = member % S::kLanes;
  auto* const far_batches = reinterpret_cast<uint16_t*>(shared + layout.far) +
                            team * (partials.chunk_rows / (S::kTeams * kRows));
  // A block holds the columns [rank * slice, rank * slice + slice).
  const int columns = static_cast<int>(log_p.columns);
  const int slice = (columns + cluster - 1) / cluster;
  const int first_column = rank * slice + member;
  const int past = min(columns, rank * slice + slice);
  int mine = 0;  // columns of this thread
#pragma unroll
  for (int j = 0; j < kColumns; ++j) mine += first_column + j * S::kTeam < past;

  const double lam = arguments.lam[b];
  const Scale scale(lam);
  const double* const problem_v =
      arguments.v + (b * arguments.all_candidates + arguments.first_candidate) * log_p.columns;
  float2 held[S::kHoldsPotential ? kColumns : 1];
  float quantum[kCandidates];
  unsigned tried = 0;
#pragma unroll
  for (int s = 0; s < kCandidates; ++s) {
    quantum[s] = 1.0f;
    if (s >= arguments.candidates) continue;
    const double* const v = problem_v + s * log_p.columns;
    if (v[0] == v[0]) tried |= 1u << s;
    double largest = 0.0;
    for (int j = 0; j < mine; ++j) {
      const double size = fabs(v[first_column + j * S::kTeam]);
      if (size < infinity()) largest = fmax(largest, size);
    }
    quantum[s] = quantum_of(lanes_max(largest), lam);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float2 split = j < mine ? split_potential(v[first_column + j * S::kTeam], quantum[s])
                                    : make_float2(-infinity(), 0.0f);
      if constexpr (S::kHoldsPotential) {
        held[j] = split;
      } else if (team == 0) {
        potentials[s * S::kWidth + j * S::kTeam + member] = split;
      }
    }
  }
  __syncthreads();
  if (S::kWide) cluster_sync();  // all blocks of the cluster have begun

  const Storage* const problem = log_p.data + b * log_p.problem_stride +
                                 first_row * log_p.row_stride + first_column * log_p.column_stride;
  // Where this thread's columns begin in a batch's row r, and the row's weight: 0 past the last.
  const auto row_at = [&](int step, int r, float2* weight) {
    const int entry = (step * S::kTeams + team) * kRows + r;
    *weight = entry < count ? weights[entry] : make_float2(0.0f, 0.0f);
    return problem + row_list[min(entry, count - 1)] * log_p.row_stride;
  };
  const auto load_rows = [&](int step, Storage(&values)[kRows][kColumns], float2(&weight)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const Storage* const row = row_at(step, r, &weight[r]);
      const auto load_columns = [&](auto stride) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          values[r][j] = j < S::kSure || j < mine ? load(row + j * S::kTeam * stride) : Storage{};
        }
      };
      if (log_p.column_stride == 1) {
        load_columns(1);
      } else {
        load_columns(log_p.column_stride);
      }
    }
  };

  float held_mass[kCandidates][S::kHoldsSums ? kColumns : 1];
  const auto mass = [&](int s, int j) -> float& {
    if constexpr (S::kHoldsSums) {
      return held_mass[s][j];
    } else {
      return reinterpret_cast<float*>(shared + layout.sums)[s * S::kWidth + j * S::kTeam + member];
    }
  };
  double value[kCandidates];
  float kept_sum[kCandidates];  // lane i keeps a row's until its logarithm is due
  float2 kept_weight = make_float2(0.0f, 0.0f);
#pragma unroll
  for (int s = 0; s < kCandidates; ++s) {
    value[s] = 0.0;
    kept_sum[s] = 1.0f;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) mass(s, j) = 0.0f;
  }
  // Lanes take the logarithms of their rows' sums at the same time.
  const auto take_logarithms = [&] {
    const double weight = static_cast<double>(kept_weight.x) + kept_weight.y;
#pragma unroll
    for (int s = 0; s < kCandidates; ++s) {
      value[s] += weight * log(static_cast<double>(kept_sum[s]));
      kept_sum[s] = 1.0f;
    }
    kept_weight = make_float2(0.0f, 0.0f);
  };
  const auto keep_weights = [&](int step, const float2(&weight)[kRows]) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (team_lane == (step * kRows + r) % S::kLanes) kept_weight = weight[r];
    }
  };
  // Adds a batch of rows, given their exponentials and this warp's part of their sums. Returns
  // false, and adds nothing, where a warp of the team says by its shift that it could not do them
  // in float.
  int parity = 0;
  const auto add_rows = [&](bool in_float, int s, int step, const float2(&weight)[kRows],
                            const float (&e)[kRows][kColumns], const Part(&part)[kRows]) {
    Part whole[kRows];
    if constexpr (S::kWarps == 1) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) whole[r] = part[r];
    } else {
      Part* const buffer = exchange + parity * kRows * S::kTeams * S::kWarps * S::kMaxCluster;
      team_sums<S>(buffer, cluster, rank, team, warp, lane, part, whole);
      parity ^= 1;
    }
    if (in_float && whole[0].shift == kFar) return false;
    float factor[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float inverse = reciprocal_fast(whole[r].sum);
      factor[r] = fmaf(weight[r].y, inverse, weight[r].x * inverse);
      if (S::kWarps > 1) factor[r] *= exp2_fast(static_cast<float>(part[r].shift - whole[r].shift));
      if (team_lane == 0) {
        value[s] += (static_cast<double>(weight[r].x) + weight[r].y) * (whole[r].shift * kLog2);
      }
      if (team_lane == (step * kRows + r) % S::kLanes) kept_sum[s] = whole[r].sum;
    }
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      float sum = factor[0] * e[0][j];
#pragma unroll
      for (int r = 1; r < kRows; ++r) sum = fmaf(factor[r], e[r][j], sum);
      mass(s, j) += sum;
    }
    return true;
  };

  Storage next[kRows][kColumns];
  float2 next_weight[kRows];
  load_rows(0, next, next_weight);
  int far_count = 0;
  const int steps = (count + S::kTeams * kRows - 1) / (S::kTeams * kRows);
  for (int step = 0; step < steps; ++step) {
    float x[kRows][kColumns];
    float2 weight[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      weight[r] = next_weight[r];
#pragma unroll
      for (int j = 0; j < kColumns; ++j) x[r][j] = to_float(next[r][j]);
    }
    if (step + 1 < steps) load_rows(step + 1, next, next_weight);
    keep_weights(step, weight);

    int far = 0;  // a bit a candidate
#pragma unroll
    for (int s = 0; s < kCandidates; ++s) {
      if (!(tried >> s & 1)) continue;
      const auto potential = [&](int j) {
        if constexpr (S::kHoldsPotential) {
          return held[j];
        } else {
          return potentials[s * S::kWidth + j * S::kTeam + member];
        }
      };
      float top[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) top[r] = -infinity();
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float hi = potential(j).x;
#pragma unroll
        for (int r = 0; r < kRows; ++r) top[r] = fmaxf(top[r], fmaf(scale.hi, x[r][j], hi));
      }
      const float per_quantum = __int_as_float((254 << 23) - __float_as_int(quantum[s]));
      float shift[kRows];
      bool near = quantum[s] <= kLargestQuantum;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int quanta = lanes_max<S::kLanes>(__float2int_rn(top[r] * per_quantum));
        near &= static_cast<unsigned>(quanta) + kMostQuanta <= 2u * kMostQuanta;
        shift[r] = static_cast<float>(quanta) * quantum[s];
      }
      if (S::kLanes < kWarp) near = __all_sync(kAllLanes, near);
      float e[kRows][kColumns];
      float sum[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) sum[r] = 0.0f;
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const float2 split = potential(j);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          e[r][j] = exp2_fast(fmaf(scale.hi, x[r][j], split.x - shift[r]) +
                              fmaf(scale.lo, x[r][j], split.y));
          sum[r] += e[r][j];
        }
      }
      Part part[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        sum[r] = lanes_sum<S::kLanes>(sum[r]);
        part[r] = {near ? shift[r] : kFar, sum[r]};
      }
      if (!add_rows(true, s, step, weight, e, part)) far |= 1 << s;
    }
    if (far != 0) {
      if (member == 0) {
        far_batches[far_count] = static_cast<uint16_t>(step << 7 | far);
      }
      ++far_count;
    }
    if ((step + 1) * kRows % S::kLanes == 0) take_logarithms();
  }
  take_logarithms();

  // The batches that are too far from 0 for float, in double.
  __syncthreads();
  for (int at = 0; __syncthreads_or(at < far_count); ++at) {
    const int batch = at < far_count ? far_batches[at] : 0;
    const int step = batch >> 7;
    float2 weight[kRows];
    const Storage* rows_of_batch[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) rows_of_batch[r] = row_at(step, r, &weight[r]);
    keep_weights(step, weight);
#pragma unroll
    for (int s = 0; s < kCandidates; ++s) {
      if (!(batch >> s & 1)) continue;
      const double* const v = problem_v + s * log_p.columns + first_column;
      float e[kRows][kColumns];
      Part part[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const auto x = [&](int j) {
          const Storage p = load(rows_of_batch[r] + j * S::kTeam * log_p.column_stride);
          return scaled(lam, to_float(p), v[j * S::kTeam]);
        };
        double top = -infinity();
#pragma unroll 1
        for (int j = 0; j < mine; ++j) top = fmax(top, x(j));
        top = lanes_max<S::kLanes>(top);
        const double finite_top = top > -infinity() ? top : 0.0;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          e[r][j] = j < mine ? exp2_fast(static_cast<float>((x(j) - finite_top) * kLog2E)) : 0.0f;
          sum += e[r][j];
        }
        part[r] = {top * kLog2E, lanes_sum<S::kLanes>(sum)};
      }
      add_rows(false, s, step, weight, e, part);
    }
    take_logarithms();
  }

  auto* const merge = reinterpret_cast<float*>(shared + layout.merge);
  auto* const warp_values = reinterpret_cast<double*>(shared + layout.value);
#pragma unroll
  for (int s = 0; s < kCandidates; ++s) {
    if (s >= arguments.candidates) continue;
    const int64_t at = task * arguments.candidates + s;
    float* const out = partials.mass + at * log_p.columns;
    const double warp_value = lanes_sum(warp == 0 ? value[s] : 0.0);
    __syncthreads();  // what was there has been read
    if (lane == 0) warp_values[thread / kWarp] = warp_value;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      if (S::kTeams > 1) {
        merge[team * S::kWidth + j * S::kTeam + member] = mass(s, j);
      } else if (j < mine) {
        out[first_column + j * S::kTeam] = mass(s, j);
      }
    }
    __syncthreads();
    if (S::kTeams > 1) {
      for (int k = thread; k < columns; k += S::kThreads) {
        double sum = 0.0;
        for (int t = 0; t < S::kTeams; ++t) sum += merge[t * S::kWidth + k];
        out[k] = static_cast<float>(sum);
      }
    }
    if (thread == 0 && rank == 0) {
      double sum = 0.0;
      for (int w = 0; w < S::kBlockWarps; ++w) sum += warp_values[w];
      partials.value[at] = sum;
    }
  }
  if (S::kWide) cluster_sync();  // none leaves while another writes to it
}

}  // namespace selavi::cuda
