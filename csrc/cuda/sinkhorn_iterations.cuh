// sinkhorn_iterations on chip: each block keeps its rows in shared memory, where every evaluation
// reads them; all blocks run at the same time and meet twice an evaluation.
//
// A team of threads takes kTeamRows rows at a time and each thread the same columns of all rows, so
// that an element has one exponential and the sums of a column stay in one thread. Teams leave
// partial column sums in device memory; each block adds those of a slice of the columns in order,
// in float64, and updates its slice of v.
#pragma once

#include <algorithm>

#include "block_potential.cuh"
#include "geometry.h"

namespace selavi::cuda {

constexpr int kOnChipThreads = 512;
constexpr int kTeamRows = 3;  // with 4 registers spill
constexpr int64_t kOnChipColumns = int64_t{kOnChipThreads} * kTeamColumns;
constexpr int kFloatGroups = 32;  // of kTeamRows rows whose columns are summed in float
constexpr int kSliceColumns = 4;  // that a warp adds up: 32 bytes of a partial

struct OnChipPlan {
  int64_t problems;  // at a time; 0 where even one does not fit the chip
  int blocks;        // for each
  int block_rows;
  int team;       // threads
  size_t shared;  // bytes a block

  __host__ __device__ int teams() const { return kOnChipThreads / team; }
  // Columns that a block adds up.
  __host__ __device__ int slice(int columns) const {
    return (columns + blocks * kSliceColumns - 1) / (blocks * kSliceColumns) * kSliceColumns;
  }
};

// Shared memory of a block, in bytes from its beginning.
struct OnChipLayout {
  size_t potential, share, rows, bytes;

  // Scratch comes first: of two reductions, of rows that are far from 0, and of teams. Teams do not
  // wait for each other: what one reads must be its own, whatever the others are at.
  static constexpr size_t kWarps = kOnChipThreads / kWarp;
  static constexpr size_t kReduction = kWarps * kTeamRows;  // doubles

  __host__ __device__ OnChipLayout(int64_t columns, int64_t block_rows, size_t element) {
    constexpr size_t kLine = 16;
    const auto wide = static_cast<size_t>(columns), high = static_cast<size_t>(block_rows);
    potential = (2 * kReduction + 3 * kWarps + 2) * sizeof(double);
    // hi and lo; in between sums of a slice.
    const size_t slice = wide + kSliceColumns > kWarps * kSliceColumns ? wide + kSliceColumns
                                                                       : kWarps * kSliceColumns;
    share = potential + slice * sizeof(double);
    rows = (share + high * sizeof(float) + kLine - 1) / kLine * kLine;
    bytes = rows + wide * high * element + kLine;  // the rows begin where they did in device memory
  }
};

// How B problems (N, K) of `element` bytes fit on a chip, one block a multiprocessor: the registers
// of kOnChipThreads leave no room for a second.
inline OnChipPlan on_chip_plan(int64_t problems, int64_t rows, int64_t columns, size_t element,
                               int64_t multiprocessors, size_t shared) {
  OnChipPlan plan = {};
  const size_t fixed = OnChipLayout(columns, 0, element).bytes + 16;
  if (columns > kOnChipColumns || fixed >= shared) return plan;
  const size_t row = static_cast<size_t>(columns) * element + sizeof(float);
  const auto most_rows = static_cast<int64_t>((shared - fixed) / row);
  if (most_rows == 0) return plan;
  const int64_t least = std::max<int64_t>(ceil_div(rows, most_rows), 1);
  if (least > multiprocessors) return plan;
  const int64_t launches = ceil_div(problems, std::min(problems, multiprocessors / least));
  plan.problems = ceil_div(problems, launches);
  plan.team = team_size(columns, kOnChipThreads);
  const int64_t useful = ceil_div(rows, int64_t{plan.teams()} * kTeamRows);
  const int64_t blocks =
      std::max(least, std::min(multiprocessors / plan.problems, std::max<int64_t>(useful, 1)));
  plan.block_rows = static_cast<int>(ceil_div(rows, blocks));
  plan.blocks = static_cast<int>(rows == 0 ? 1 : ceil_div(rows, plan.block_rows));
  plan.shared = OnChipLayout(columns, plan.block_rows, element).bytes;
  return plan;
}

template <typename Storage>
struct OnChipArguments {
  Matrices<Storage> log_p;
  const double *row_marginal, *col_marginal, *lam;  // (B, N), (B, K), (B)
  double *v, *mass, *value;                         // (B, K), (B, K), (B)
  double* partial_mass;                             // (problems of a launch, blocks x teams, K)
  double* partial_value;                            // (problems of a launch, blocks)
  int64_t first_problem;
  int count;
};

// What a block works on, and where.
template <typename Storage>
struct OnChipBlock {
  int64_t problem, local;  // of all, of the launch's
  int index;               // among the problem's blocks
  int64_t first;           // row
  int rows, columns;
  double *scratch, *other_scratch, *far_scratch, *team_scratch;
  double* unit;  // the block's largest weight; share = weight / unit
  float *hi, *lo, *share;
  Storage* data;

  __device__ OnChipBlock(const OnChipArguments<Storage>& a, const OnChipPlan& plan) {
    local = blockIdx.x / plan.blocks;
    problem = a.first_problem + local;
    index = static_cast<int>(blockIdx.x % plan.blocks);
    first = int64_t{index} * plan.block_rows;
    columns = static_cast<int>(a.log_p.columns);
    rows = static_cast<int>(min(int64_t{plan.block_rows}, a.log_p.rows - first));
    const OnChipLayout layout(columns, plan.block_rows, sizeof(Storage));
    auto* memory = shared_memory<unsigned char>();
    scratch = reinterpret_cast<double*>(memory);
    other_scratch = scratch + OnChipLayout::kReduction;
    far_scratch = other_scratch + OnChipLayout::kReduction;
    team_scratch = far_scratch + 2 * OnChipLayout::kWarps;
    unit = team_scratch + OnChipLayout::kWarps;
    hi = reinterpret_cast<float*>(memory + layout.potential);
    lo = hi + columns;
    share = reinterpret_cast<float*>(memory + layout.share);
    data = reinterpret_cast<Storage*>(memory + layout.rows);
  }

  __device__ float share_of(int row) const { return row < rows ? share[row] : 0.0f; }

  // Copies the block's rows to `data`, as they are stored, and their shares.
  __device__ void load(const OnChipArguments<Storage>& a) {
    const Matrices<Storage>& log_p = a.log_p;
    const Storage* source = log_p.data + problem * log_p.problem_stride + first * log_p.row_stride;
    const int count = rows * columns, thread = static_cast<int>(threadIdx.x);
    if (log_p.column_stride == 1 && log_p.row_stride == log_p.columns) {
      constexpr int kVector = 16 / sizeof(Storage);
      const auto misplaced = static_cast<int>(reinterpret_cast<uintptr_t>(source) % 16);
      data += misplaced / static_cast<int>(sizeof(Storage));
      const int head = min(count, (16 - misplaced) % 16 / static_cast<int>(sizeof(Storage)));
      const int vectors = (count - head) / kVector, tail = head + vectors * kVector;
      const auto* from = reinterpret_cast<const uint4*>(source + head);
      auto* to = reinterpret_cast<uint4*>(data + head);
#pragma unroll 8
      for (int i = thread; i < vectors; i += kOnChipThreads) to[i] = from[i];
      if (thread < head) data[thread] = source[thread];
      if (tail + thread < count) data[tail + thread] = source[tail + thread];
    } else {
      const int high = rows, wide = columns;
      const bool along_rows = log_p.row_stride < log_p.column_stride;
#pragma unroll 4
      for (int i = thread; i < count; i += kOnChipThreads) {
        const int row = along_rows ? i % high : i / wide, k = along_rows ? i / high : i % wide;
        data[row * wide + k] = source[row * log_p.row_stride + k * log_p.column_stride];
      }
    }
    const double* weight = a.row_marginal + problem * log_p.rows + first;
    double largest = 0.0;
    for (int i = thread; i < rows; i += kOnChipThreads) largest = fmax(largest, weight[i]);
    Team(kOnChipThreads).max<1>(&largest, scratch);
    if (thread == 0) *unit = largest;
    for (int i = thread; i < rows; i += kOnChipThreads) {
      share[i] = largest > 0.0 ? static_cast<float>(weight[i] / largest) : 0.0f;
    }
  }
};

// One evaluation by a team: column sums over its rows, in units of the block's largest weight, and
// at the last evaluation sum_i c_i Z_i in base 2, in team_scratch.
template <typename Storage>
struct Evaluation {
  const OnChipArguments<Storage>& arguments;
  const OnChipBlock<Storage>& block;
  const Team team;
  const BlockScale split;
  const bool last;
  float sum[kTeamColumns] = {};

  __device__ Evaluation(const OnChipArguments<Storage>& arguments,
                        const OnChipBlock<Storage>& block, int size, const BlockScale& split,
                        bool last)
      : arguments(arguments), block(block), team(size), split(split), last(last) {}

  // Calls body(e, k, hi, lo) for this thread's columns; where there is none, for a column whose
  // exponentials are 0.
  template <typename Body>
  __device__ void each_column(Body body) const {
#pragma unroll
    for (int e = 0; e < kTeamColumns; ++e) {
      if (e * team.size >= block.columns) break;
      const int k = min(e * team.size + team.rank, block.columns - 1);
      const bool exists = e * team.size + team.rank < block.columns;
      body(e, k, exists ? block.hi[k] : -infinity(), exists ? block.lo[k] : 0.0f);
    }
  }

  // kRows rows' column k in x[.][e]; rows that have no weight, or are not there, are zeros.
  template <int kRows>
  __device__ void load(int first, float (&x)[kRows][kTeamColumns]) const {
    float share[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) share[r] = block.share_of(first + r);
    each_column([&](int e, int k, float, float) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        x[r][e] = share[r] == 0.0f ? 0.0f : to_float(block.data[(first + r) * block.columns + k]);
      }
    });
  }

  // What the exponentials of a row are multiplied by; `shift` and `total` are those of its softmax.
  __device__ float factor_of(int row, double shift, float total) {
    const float share = block.share_of(row);
    if (share == 0.0f) return 0.0f;
    if (last && team.rank == 0) {
      const int64_t problem = block.problem * arguments.log_p.rows;
      const double weight = arguments.row_marginal[problem + block.first + row];
      block.team_scratch[team.index] += weight * (shift + log2(static_cast<double>(total)));
    }
    return share / total;
  }

  // kTeamRows rows from `first` on.
  __device__ void add_rows(int first) {
    float x[kTeamRows][kTeamColumns], shift[kTeamRows], total[kTeamRows] = {};
    load(first, x);
    bool far = false;
#pragma unroll
    for (int r = 0; r < kTeamRows; ++r) shift[r] = -infinity();
    each_column([&](int e, int, float hi, float) {
#pragma unroll
      for (int r = 0; r < kTeamRows; ++r) {
        shift[r] = fmaxf(shift[r], fmaf(split.scale.hi, x[r][e], hi));
      }
    });
    team.max<kTeamRows>(shift, reinterpret_cast<float*>(block.scratch));
#pragma unroll
    for (int r = 0; r < kTeamRows; ++r) {
      shift[r] = split.shift(shift[r]);
      far |= !(fabsf(shift[r]) <= split.limit());
    }
    if (far) return add_far_rows(first);
    each_column([&](int e, int, float hi, float lo) {
#pragma unroll
      for (int r = 0; r < kTeamRows; ++r) {
        x[r][e] = exp2_fast(fmaf(split.scale.hi, x[r][e], hi - shift[r]) +
                            fmaf(split.scale.lo, x[r][e], lo));
        total[r] += x[r][e];
      }
    });
    team.sum<kTeamRows>(total, reinterpret_cast<float*>(block.other_scratch));
#pragma unroll
    for (int r = 0; r < kTeamRows; ++r) {
      const float factor = factor_of(first + r, shift[r], total[r]);
      each_column([&](int e, int, float, float) { sum[e] = fmaf(factor, x[r][e], sum[e]); });
    }
  }

  // The same one after another and in double, where a row is too far from 0 for floats. A row that
  // is -inf throughout gives NaN.
  __device__ void add_far_rows(int first) {
#pragma unroll 1
    for (int row = first; row < first + kTeamRows; ++row) {
      float x[1][kTeamColumns], total = 0.0f;
      load(row, x);
      const auto exponent = [&](int e, float hi, float lo) {
        return split.in_double() * x[0][e] + (static_cast<double>(hi) + lo);
      };
      double top = -INFINITY;
      each_column([&](int e, int, float hi, float lo) { top = fmax(top, exponent(e, hi, lo)); });
      team.max<1>(&top, block.far_scratch);
      each_column([&](int e, int, float hi, float lo) {
        x[0][e] = exp2_fast(static_cast<float>(exponent(e, hi, lo) - top));
        total += x[0][e];
      });
      team.sum<1>(&total, reinterpret_cast<float*>(block.far_scratch + OnChipLayout::kWarps));
      const float factor = factor_of(row, top, total);
      each_column([&](int e, int, float, float) { sum[e] = fmaf(factor, x[0][e], sum[e]); });
    }
    team.meet();  // before scratch is used again
  }

  // target (K): this thread's columns become the sums, or grow by them.
  __device__ void flush(double* target, bool grow) {
    each_column([&](int e, int k, float, float) {
      if (e * team.size + team.rank != k) return;
      target[k] = (grow ? target[k] : 0.0) + *block.unit * sum[e];
      sum[e] = 0.0f;
    });
  }
};

// Leaves the teams' column sums and, at the last evaluation, the block's sum of c_i Z_i.
template <typename Storage>
__device__ void evaluate(const OnChipArguments<Storage>& a, const OnChipPlan& plan,
                         const OnChipBlock<Storage>& block, const BlockScale& split, bool last) {
  Evaluation<Storage> evaluation(a, block, plan.team, split, last);
  const int team = evaluation.team.index, step = plan.teams() * kTeamRows;
  const int64_t block_index = block.local * plan.blocks + block.index;
  double* mass = a.partial_mass + (block_index * plan.teams() + team) * block.columns;
  if (evaluation.team.rank == 0) block.team_scratch[team] = 0.0;
  int groups = 0;
  for (int first = 0; first < block.rows; first += step) {
    evaluation.add_rows(first + team * kTeamRows);
    if (++groups % kFloatGroups == 0) evaluation.flush(mass, groups > kFloatGroups);
  }
  evaluation.flush(mass, groups >= kFloatGroups);
  if (!last) return;
  __syncthreads();
  if (threadIdx.x != 0) return;
  double value = 0.0;
  for (int j = 0; j < plan.teams(); ++j) value += block.team_scratch[j];
  a.partial_value[block_index] = value * kLog2;
}

// log r - log m; a column without mass takes the largest finite step.
__device__ inline double sinkhorn_step(double due, double mass) {
  constexpr double kTiny = 2.2250738585072014e-308;
  return log(due) - log(mass < kTiny ? kTiny : mass);
}

// Adds the partials of the block's slice of columns; then v += log r - log m there or, at the end,
// the sums are the result.
template <typename Storage>
__device__ void update(const OnChipArguments<Storage>& a, const OnChipPlan& plan,
                       const OnChipBlock<Storage>& block, bool last) {
  constexpr int kWarps = kOnChipThreads / kWarp, kParts = kWarp / kSliceColumns;
  const int slice = plan.slice(block.columns), first = block.index * slice;
  const int quads = slice / kSliceColumns, groups = max(kWarps / quads, 1);
  const int parts = plan.blocks * plan.teams();
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  auto* sums = reinterpret_cast<double*>(block.hi);  // which the new v will overwrite
  const double* partial = a.partial_mass + block.local * parts * block.columns;
  for (int task = warp; task < quads * groups; task += kWarps) {
    const int k = first + task / groups * kSliceColumns + lane % kSliceColumns;
    double sum = 0.0;
#pragma unroll 8
    for (int part = task % groups * kParts + lane / kSliceColumns; part < parts;
         part += groups * kParts) {
      if (k < block.columns) sum += partial[int64_t{part} * block.columns + k];
    }
    for (int distance = kWarp / 2; distance >= kSliceColumns; distance /= 2) {
      sum += __shfl_xor_sync(kAllLanes, sum, distance);
    }
    if (lane < kSliceColumns) sums[task * kSliceColumns + lane] = sum;
  }
  __syncthreads();
  for (int j = threadIdx.x; j < slice && first + j < block.columns; j += kOnChipThreads) {
    double mass = 0.0;
    for (int group = 0; group < groups; ++group) {
      mass += sums[(j / kSliceColumns * groups + group) * kSliceColumns + j % kSliceColumns];
    }
    const int64_t at = block.problem * block.columns + first + j;
    if (last) {
      a.mass[at] = mass;
    } else {
      a.v[at] += sinkhorn_step(a.col_marginal[at], mass);
    }
  }
  if (!last || block.index != 0 || warp != 0) return;
  double value = 0.0;
  for (int j = lane; j < plan.blocks; j += kWarp) {
    value += a.partial_value[block.local * plan.blocks + j];
  }
  value = lanes_sum(value);
  if (lane == 0) a.value[block.problem] = value;
}

template <typename Storage>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    on_chip_kernel(const OnChipArguments<Storage> a, const OnChipPlan plan) {
  OnChipBlock<Storage> block(a, plan);
  block.load(a);
  const double* v = a.v + block.problem * block.columns;
  for (int evaluation = 1; evaluation <= a.count; ++evaluation) {
    const bool last = evaluation == a.count;
    const BlockScale split = split_potential(v, a.lam[block.problem], block.columns, block.hi,
                                             block.lo, block.other_scratch);
    __syncthreads();
    evaluate(a, plan, block, split, last);
    grid_sync();
    update(a, plan, block, last);
    if (!last) grid_sync();
  }
}

// For where the matrices do not fit: v += log r - log m, elements (B, K).
__global__ void update_potential_kernel(const double* col_marginal, const double* mass,
                                        int64_t count, double* v) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < count) v[i] += sinkhorn_step(col_marginal[i], mass[i]);
}

}  // namespace selavi::cuda
