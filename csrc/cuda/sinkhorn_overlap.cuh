// Second half of sinkhorn_overlap: sum_i t_i t_i^T with t_ik = sqrt(c_i) pi_ik, in tiles of
// columns.
//
// A block multiplies one pair of tiles over one share of the rows. It makes t anew from log_p: an
// exponential costs less than t would to write and read. Pairs of the same rows are neighbours in
// the grid, so that they find them in the L2 cache.
// On sm_90 wgmma would multiply faster than mma.sync does; it is not here because it can be neither
// emulated nor run on sm_80 or sm_100.
#pragma once

#include <algorithm>

#include "sinkhorn_overlap_rows.cuh"
#include "tensor_core.cuh"

namespace selavi::cuda {

constexpr int kGramThreads = 256;
constexpr int kDoubleTile = 64;        // columns of a tile in float64
constexpr int kDoubleRows = 16;        // of a tile at a time
constexpr int64_t kGramBlocks = 2048;  // about as many blocks as the rows are shared among
constexpr int64_t kLeastShare = 256;   // rows

struct GramPlan {
  int64_t rows, columns;
  int64_t tiles, pairs;        // of tiles, row <= column
  int64_t shares, share_rows;  // of the rows
};

inline GramPlan gram_plan(int64_t problems, int64_t rows, int64_t columns, int tile) {
  GramPlan plan = {rows, columns, ceil_div(columns, tile)};
  plan.pairs = plan.tiles * (plan.tiles + 1) / 2;
  const int64_t wanted = std::max<int64_t>(kGramBlocks / (plan.pairs * problems), 1);
  constexpr int64_t kMultiple = 64;  // of any kernel's rows at a time
  plan.share_rows = ceil_div(std::max(ceil_div(rows, wanted), kLeastShare), kMultiple) * kMultiple;
  plan.shares = ceil_div(rows, plan.share_rows);
  return plan;
}

struct TilePair {
  int64_t row_tile = 0, column_tile;

  __device__ TilePair(const GramPlan& plan, int64_t pair) {
    while (pair >= plan.tiles - row_tile) pair -= plan.tiles - row_tile++;
    column_tile = row_tile + pair;
  }
};

// What block `index` of the grid (problems, shares, pairs) does.
struct GramBlock : TilePair {
  int64_t problem, first, last;  // rows

  __device__ GramBlock(const GramPlan& plan, int64_t index) : TilePair(plan, index % plan.pairs) {
    const int64_t share = index / plan.pairs % plan.shares;
    problem = index / plan.pairs / plan.shares;
    first = share * plan.share_rows;
    last = min(first + plan.share_rows, plan.rows);
  }
};

// Writes t of two columns, and of kRows / (threads / pairs of columns) rows, at a time to a tile.
template <typename Storage, int kTile, int kRows>
struct Stage {
  static constexpr int kPitch = kTile + 8;  // 16 bytes further a row: no two in the same banks
  static constexpr int kHeld = kRows * kTile / kGramThreads;  // rows of a thread

  const Storage *left, *right;  // the columns
  int64_t row_stride;
  float hi[2], lo[2];
  BlockScale block_scale;
  float limit;
  int step, row, target;  // rows apart; the first; where in a buffer
  Storage raw[kHeld][2];

  __device__ Stage(const Matrices<Storage>& log_p, const Potentials<float>& potentials,
                   const GramBlock& block)
      : row_stride(log_p.row_stride), block_scale(potentials.scale[block.problem]) {
    const int pairs = block.row_tile == block.column_tile ? kTile / 2 : kTile;
    const int pair = threadIdx.x % pairs, second = pair / (kTile / 2);
    const int column = pair % (kTile / 2) * 2;
    step = kGramThreads / pairs;
    row = threadIdx.x / pairs;
    target = (second * kRows + row) * kPitch + column;
    limit = block_scale.limit();
    const int64_t k = (second ? block.column_tile : block.row_tile) * kTile + column;
    const int64_t last = log_p.columns - 1;
    const Storage* problem =
        log_p.data + block.problem * log_p.problem_stride + block.first * row_stride;
    left = problem + min(k, last) * log_p.column_stride;
    right = problem + min(k + 1, last) * log_p.column_stride;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const int64_t at = block.problem * log_p.columns + min(k + j, last);
      hi[j] = k + j <= last ? potentials.hi[at] : -infinity();
      lo[j] = k + j <= last ? potentials.lo[at] : 0.0f;
    }
  }

  // Asks for a chunk of the share's rows; behind the last ones for others, which have no weight.
  __device__ void load(int first, int rows) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (j * step >= kRows) break;
      const int64_t offset = min(first + row + j * step, rows - 1) * row_stride;
      raw[j][0] = left[offset];
      raw[j][1] = right[offset];
    }
  }

  // buffer: both tiles, kRows x kPitch each. shifts: of the chunk's rows.
  __device__ void store(const RowShift<float>* shifts, BFloat16* buffer) const {
    const Scale scale = block_scale.scale;
#pragma unroll
    for (int j = 0; j < kHeld; ++j) {
      if (j * step >= kRows) break;
      const RowShift<float> shift = shifts[row + j * step];
      float t[2];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float x = to_float(raw[j][c]);
        float y = fmaf(scale.hi, x, hi[c] - shift.shift) + fmaf(scale.lo, x, lo[c] - shift.rest);
        if (!(fabsf(shift.shift) <= limit)) {
          const double far = static_cast<double>(shift.shift) + shift.rest;
          y = static_cast<float>(block_scale.in_double() * x +
                                 (static_cast<double>(hi[c]) + lo[c]) - far);
        }
        t[c] = shift.is_skipped() ? 0.0f : exp2_fast(y);
      }
      *reinterpret_cast<unsigned*>(buffer + target + j * step * kPitch) = pack_bfloat16(t[0], t[1]);
    }
  }
};

// partial (blocks, kTile, kTile). Float sums: a share has too few rows for their error to show
// beside that of the factors, which have 8 bits.
template <typename Storage, int kTile, int kRows>
__global__ void __launch_bounds__(kGramThreads, 2)
    gram_kernel(Matrices<Storage> log_p, Potentials<float> potentials, GramPlan plan,
                const RowShift<float>* shifts, const int* live, float* partial) {
  using Staged = Stage<Storage, kTile, kRows>;
  constexpr int kPitch = Staged::kPitch, kBuffer = 2 * kRows * kPitch;
  constexpr int kHeight = kTile / 2, kWidth = kTile / 4;  // of a warp's part of the tile
  constexpr int kDown = kHeight / 16, kAcross = kWidth / 8;
  const GramBlock block(plan, blockIdx.x);
  if (!live[block.problem]) return;
  auto* buffers = shared_memory<BFloat16>();
  auto* chunk_shifts = reinterpret_cast<RowShift<float>*>(buffers + 2 * kBuffer);  // 2 x kRows
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int m = warp / 4 * kHeight, n = warp % 4 * kWidth;
  const int second = block.row_tile == block.column_tile ? 0 : kRows * kPitch;
  // Where load_transposed wants a lane's row: matrices side by side, or one below the other first.
  const int left = (lane / 16 * 8 + lane % 8) * kPitch + lane / 8 % 2 * 8 + m;
  const int right = (lane / 8 % 2 * 8 + lane % 8) * kPitch + lane / 16 * 8 + n + second;
  const int rows = static_cast<int>(block.last - block.first);
  shifts += block.problem * plan.rows + block.first + threadIdx.x;
  const auto shift_of = [=](int first) {
    return first + static_cast<int>(threadIdx.x) < rows ? shifts[first] : skipped_row<float>();
  };
  float sum[kDown][kAcross][4] = {};
  Staged stage(log_p, potentials, block);
  stage.load(0, rows);
  if (threadIdx.x < kRows) {
    chunk_shifts[threadIdx.x] = shift_of(0);
    chunk_shifts[kRows + threadIdx.x] = shift_of(kRows);
  }
  __syncthreads();
  stage.store(chunk_shifts, buffers);
  __syncthreads();
  for (int first = 0; first < rows; first += kRows) {
    const int now = first / kRows % 2, next = 1 - now;
    const bool more = first + kRows < rows;
    RowShift<float> later = skipped_row<float>();
    if (threadIdx.x < kRows) later = shift_of(first + 2 * kRows);
    if (more) stage.load(first + kRows, rows);
    const BFloat16* buffer = buffers + now * kBuffer;
#pragma unroll
    for (int row = 0; row < kRows; row += 16) {
      uint4 b[kAcross / 2];
#pragma unroll
      for (int j = 0; j < kAcross / 2; ++j) {
        b[j] = load_transposed(buffer + right + row * kPitch + 16 * j);
      }
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        const uint4 a = load_transposed(buffer + left + row * kPitch + 16 * i);
#pragma unroll
        for (int j = 0; j < kAcross / 2; ++j) {
          multiply_add(a, b[j].x, b[j].y, sum[i][2 * j]);
          multiply_add(a, b[j].z, b[j].w, sum[i][2 * j + 1]);
        }
      }
    }
    if (more) stage.store(chunk_shifts + next * kRows, buffers + next * kBuffer);
    if (threadIdx.x < kRows) chunk_shifts[now * kRows + threadIdx.x] = later;
    __syncthreads();
  }
  float* out = partial + static_cast<int64_t>(blockIdx.x) * kTile * kTile;
#pragma unroll
  for (int i = 0; i < kDown; ++i) {
#pragma unroll
    for (int j = 0; j < kAcross; ++j) {
      float* target = out + (m + 16 * i + lane / 4) * kTile + n + 8 * j + lane % 4 * 2;
      *reinterpret_cast<float2*>(target) = make_float2(sum[i][j][0], sum[i][j][1]);
      *reinterpret_cast<float2*>(target + 8 * kTile) = make_float2(sum[i][j][2], sum[i][j][3]);
    }
  }
}

// The same in float64, for log_p of it: 16 x 16 threads with 4 x 4 elements each.
__global__ void __launch_bounds__(kGramThreads)
    gram_double_kernel(Matrices<double> log_p, Potentials<double> potentials, GramPlan plan,
                       const RowShift<double>* shifts, const int* live, double* partial) {
  constexpr int kRows = kDoubleRows, kTile = kDoubleTile, kEach = kTile / 16;
  const GramBlock block(plan, blockIdx.x);
  if (!live[block.problem]) return;
  auto* left = shared_memory<double>();
  double* right = left + kRows * kTile;
  const int x = threadIdx.x % 16, y = threadIdx.x / 16;
  const double lam = potentials.lam[block.problem];
  double sum[kEach][kEach] = {};
  for (int64_t first = block.first; first < block.last; first += kRows) {
    for (int at = threadIdx.x; at < 2 * kRows * kTile; at += kGramThreads) {
      const int64_t i = first + at / kTile % kRows;
      const int64_t tile = at < kRows * kTile ? block.row_tile : block.column_tile;
      const int64_t k = tile * kTile + at % kTile;
      const RowShift<double> shift =
          i < block.last ? shifts[block.problem * plan.rows + i] : skipped_row<double>();
      left[at] = 0.0;
      if (shift.is_skipped() || k >= plan.columns) continue;
      const double entry = log_p.data[block.problem * log_p.problem_stride + i * log_p.row_stride +
                                      k * log_p.column_stride];
      const double v = potentials.v[block.problem * plan.columns + k];
      left[at] = exp(fma(lam, entry, v) - shift.shift);
    }
    __syncthreads();
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int i = 0; i < kEach; ++i) {
#pragma unroll
        for (int j = 0; j < kEach; ++j) {
          sum[i][j] =
              fma(left[row * kTile + y + 16 * i], right[row * kTile + x + 16 * j], sum[i][j]);
        }
      }
    }
    __syncthreads();
  }
  double* out = partial + static_cast<int64_t>(blockIdx.x) * kTile * kTile;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
#pragma unroll
    for (int j = 0; j < kEach; ++j) out[(y + 16 * i) * kTile + x + 16 * j] = sum[i][j];
  }
}

constexpr int kPatch = 32;  // columns and rows of the result that a block of the last kernel makes

// out (B, K, K) = the shares' partials, added in order, and mirrored; 0 for problems without
// weight.
template <int kTile, typename Number>
__global__ void __launch_bounds__(kGramThreads)
    overlap_kernel(GramPlan plan, const Number* partial, const int* live, double* out) {
  constexpr int kAcross = kTile / kPatch, kPatches = kAcross * kAcross, kPitch = kPatch + 1;
  auto* patch = shared_memory<double>();  // kPatch x kPitch
  const int64_t pair = blockIdx.x / kPatches % plan.pairs;
  const int64_t problem = blockIdx.x / kPatches / plan.pairs;
  const int part = blockIdx.x % kPatches, m = part / kAcross * kPatch, n = part % kAcross * kPatch;
  const TilePair tiles(plan, pair);
  const bool diagonal = tiles.row_tile == tiles.column_tile;
  if (diagonal && m > n) return;
  const int x = threadIdx.x % kPatch, y = threadIdx.x / kPatch;
  constexpr int kStep = kGramThreads / kPatch;
  for (int row = y; row < kPatch; row += kStep) {
    double sum = 0.0;
    for (int64_t share = 0; live[problem] && share < plan.shares; ++share) {
      const int64_t index = (problem * plan.shares + share) * plan.pairs + pair;
      sum += partial[(index * kTile + m + row) * kTile + n + x];
    }
    patch[row * kPitch + x] = sum;
  }
  __syncthreads();
  double* target = out + problem * plan.columns * plan.columns;
  const int64_t first_row = tiles.row_tile * kTile + m,
                first_column = tiles.column_tile * kTile + n;
  for (int row = y; row < kPatch; row += kStep) {
    const bool below = diagonal && m == n && row > x;
    if (first_row + row < plan.columns && first_column + x < plan.columns) {
      target[(first_row + row) * plan.columns + first_column + x] =
          below ? patch[x * kPitch + row] : patch[row * kPitch + x];
    }
    if (diagonal && m == n) continue;
    if (first_column + row < plan.columns && first_row + x < plan.columns) {
      target[(first_column + row) * plan.columns + first_row + x] = patch[x * kPitch + row];
    }
  }
}

}  // namespace selavi::cuda
